"""Train the toy task's tokenizer and write it into the package:  python scripts/make_tokenizer.py

Byte-level BPE, so that any text round-trips. It is trained on its words, each of which becomes one piece with
and without a leading space, and on the docstrings of Python's standard library, the general English at hand everywhere.
The pieces therefore depend a little on the Python that runs this; the folder it wrote is what counts, and is shipped.
"""

import ast
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from alignment.toy import tokenizer_path
from alignment.toy.language import toy_words

NUM_PIECES = 2048
# In the order of a Llama configuration's default ids: the beginning of a sequence is 1 and its end 2.
SPECIAL = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>")
# More often than any other piece of the corpus, so that no word of the toy task is left in parts.
TOY_REPEATS = 20_000
# Turns need no separator: each begins with its role's token, after which text is tokenised as at the start of a text.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('a role must be system, user or assistant, got ' + message['role']) -}}"
    "{%- endif -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] -}}"
    "{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def corpus() -> Iterator[str]:
    for word in toy_words():
        for _ in range(TOY_REPEATS):
            yield word
            yield f" {word}"
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node) or ""


def main() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_PIECES,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    folder = tokenizer_path()
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    pad, bos, eos, *roles = SPECIAL
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": pad,
        "bos_token": bos,
        "eos_token": eos,
        "additional_special_tokens": roles,
        # Joining " ." to the word before it would change the text that was generated.
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
