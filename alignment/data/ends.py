"""Where a reply ends: the token with which a chat template closes the assistant's turn."""

from transformers import PreTrainedTokenizerBase

from alignment.data.chat import written
from alignment.data.records import DataError, Record, Source, assistant

REPLY = "\u241f"  # a text that no template writes by itself
DIALOGUE = Record([{"role": "user", "content": "?"}], (assistant(REPLY),), None, Source("a dialogue of two turns", 1))


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that stands behind a reply, such as `<end_of_turn>`, `<|eot_id|>` or `<|end|>`, which is often another
    than the tokenizer's EOS. None where the template closes a turn with plain text, or takes no such dialogue."""
    try:
        text = written(DIALOGUE, tokenizer, [*DIALOGUE.prompt, *DIALOGUE.completions[0]])
    except DataError:
        return None
    behind = text.rpartition(REPLY)[2].lstrip()
    ids: list[int] = tokenizer(behind, add_special_tokens=False)["input_ids"]
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None
