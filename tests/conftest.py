"""What all tests may use."""

import gc
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ConstantLR
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from alignment.config.distributed import Device, DistributedConfig
from alignment.config.model import ModelConfig
from alignment.data.records import Record, Source
from alignment.data.tokenize import Example
from alignment.distributed import precision
from alignment.distributed.engine import TorchEngine
from alignment.distributed.placement import WHOLE
from alignment.generation.generate import Reply
from alignment.generation.samples import Samples
from alignment.models.load import load_language_model, load_scalar_model
from alignment.models.tokenizer import load_tokenizer
from alignment.terminal import say_once

TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}


SHAPES = [(6, 5, 9), (3, 4, 2), (8, 6, 3), (1, 1, 7), (4, 10, 10), (5, 2, 1)]  # prompt, chosen, rejected
MARGINS = [3.0, 0.0, 1.0, 2.0, 1.0, 0.5]


def pytest_collection_finish() -> None:
    """What the tests have imported stays to the end: the garbage collector need not walk over it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 60 MB of its own, which may be mounted anew with less."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Models this small are slower on many threads, and sums do not depend on how many there are."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or fills the cache of whoever runs it."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _no_hub(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test asks the hub, nor reads what is kept of it here; those that do have one of their own (tests/hub)."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HOME"] = str(tmp_path_factory.mktemp("hub"))
    constants.HF_HUB_OFFLINE = True  # of this process, in which it is imported already
    constants.HF_HUB_CACHE = f"{os.environ['HF_HOME']}/hub"


@pytest.fixture(autouse=True)
def _nothing_said() -> None:
    """What is said once is said to each test."""
    say_once.cache_clear()


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    """A sweep in this process has hydra write into the stream that a test has for stderr, which ends with the test."""
    handlers, level = list(logging.root.handlers), logging.root.level
    yield
    logging.root.handlers = handlers
    logging.root.setLevel(level)


@pytest.fixture
def any_kernels_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test asks of torch's kernels is asked of no other test's."""
    for name in ("CUBLAS_WORKSPACE_CONFIG", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    products, cudnn_sdp = torch.get_float32_matmul_precision(), torch.backends.cuda.cudnn_sdp_enabled()
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
    torch.set_float32_matmul_precision(products)
    torch.backends.cuda.enable_cudnn_sdp(cudnn_sdp)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and tokenizers, in the folder `shared` next to the checkout."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no folder `shared` with real data next to the checkout")
    return folder


@pytest.fixture
def torchao(monkeypatch: pytest.MonkeyPatch) -> str:
    """torchao for this process alone, and for those that it starts with this PYTHONPATH: transformers imports it
    wherever it is installed. Its folder."""
    folder = Path(__file__).parents[1] / ".torchao"
    if not (folder / "installed").is_file():
        pytest.skip("no torchao: bash scripts/torchao.sh lays it beside the environment")
    monkeypatch.syspath_prepend(folder)
    return str(folder)


@pytest.fixture
def fp8_on_cpu(torchao: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs take a CPU for a GPU that multiplies in 8 bits: it rounds alike, by torchao, and multiplies in float32."""
    from torchao.float8 import Float8LinearConfig  # not above: few tests need it

    recipe = Float8LinearConfig.from_recipe_name
    emulated = staticmethod(lambda name: replace(recipe(name), emulate=True))
    monkeypatch.setattr(Float8LinearConfig, "from_recipe_name", emulated)
    monkeypatch.setattr(precision, "has_fp8", lambda device: True)


@pytest.fixture(scope="session")
def tiny_init() -> dict[str, object]:
    """`model.init` of a Llama of 90 thousand weights."""
    return dict(TINY)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """The small tokenizer in the package: pad 0, bos 1, eos 2."""
    return load_tokenizer(ModelConfig(init=dict(TINY)))


CORPUS = ["hello there, how are you?\n\nfine.\n\nhello hello\n\n", "user assistant system the a of\n\n"] * 20
ALTERNATES = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
CHATML_TOOLS = (  # Qwen 2.5: schemas in the system turn, calls as JSON in tags, results in a user's turn
    "{% set first = messages[0]['content'] if messages[0]['role'] == 'system' else 'You are a helpful assistant.' %}"
    "{{ '<|im_start|>system\n' + first }}"
    "{% if tools %}{{ '\n\n# Tools\n' }}{% for tool in tools %}{{ tool | tojson + '\n' }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + message['content'] + '\n</tool_response><|im_end|>\n' }}"
    "{% elif message['role'] != 'system' or not loop.first %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}"
    "{{ '\n<tool_call>\n' + call['function'] | tojson + '\n</tool_call>' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = (  # Qwen 3: reasoning is written in the turns after the last question only, there always
    "{% set at = namespace(last=0) %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{% set at.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.index0 > at.last %}"
    "{{ '<think>\n' + (message['reasoning_content'] or '') + '\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FAMILIES: dict[str, tuple[list[str], dict[str, str], str]] = {  # special tokens, which of them are what, layout
    "llama2": (
        ["<unk>", "<s>", "</s>"],
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}"
        "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
        "{% else %}{% set turns = messages %}{% set system = '' %}{% endif %}"
        "{% for message in turns %}"
        + ALTERNATES
        + "{% set content = (system if loop.first else '') + message['content'] %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}"
        "{% else %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}{% endfor %}",
    ),
    "llama3": (
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|end_of_text|>"},
        "{{ bos_token }}"
        "{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
        "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    ),
    "qwen": (
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        CHATML_TOOLS,
    ),
    "qwen3": (
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        THINKING,
    ),
    "gemma": (
        ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}"
        + ALTERNATES
        + "{% set role = 'model' if message['role'] == 'assistant' else 'user' %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    ),
    "phi3": (
        ["<unk>", "<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
        {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"},
        "{% for message in messages %}"
        "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    ),
    "mistral": (  # the system turn stands before the last question
        ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"],
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        "{% set turns = messages[1:] if messages[0]['role'] == 'system' else messages %}"
        "{% set at = namespace(last=0) %}"
        "{% for message in turns %}"
        "{% if message['role'] == 'user' %}{% set at.last = loop.index0 %}{% endif %}{% endfor %}"
        "{{ bos_token }}{% for message in turns %}" + ALTERNATES + "{% if message['role'] == 'user' %}"
        "{% set before = messages[0]['content'] + '\n\n' if loop.index0 == at.last and turns != messages else '' %}"
        "{{ '[INST] ' + before + message['content'] + '[/INST]' }}"
        "{% else %}{{ ' ' + message['content'] | trim + eos_token }}{% endif %}{% endfor %}",
    ),
    "zephyr": (
        ["<unk>", "<s>", "</s>"],
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"},
        "{% for message in messages %}"
        "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    ),
}


@pytest.fixture(scope="session")
def family() -> Callable[[str], PreTrainedTokenizerBase]:
    """A small tokenizer with the special tokens and the chat layout that a family has published: llama2, llama3, qwen,
    qwen3, gemma, phi3, mistral, zephyr. Each call gives a new one."""

    def made(name: str) -> PreTrainedTokenizerBase:
        special, names, layout = FAMILIES[name]
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=360, initial_alphabet=alphabet, special_tokens=special, show_progress=False
        )
        raw.train_from_iterator(CORPUS, trainer)
        others = [token for token in special if token not in names.values()]
        return PreTrainedTokenizerFast(
            tokenizer_object=raw, additional_special_tokens=others, chat_template=layout, **names
        )

    return made


@pytest.fixture(scope="session")
def pairs() -> list[Example]:
    rng = np.random.default_rng(0)
    rows = []
    for shape, margin in zip(SHAPES, MARGINS, strict=True):
        prompt, *completions = (rng.integers(3, 2000, n).astype(np.int32) for n in shape)
        rows.append(Example(prompt, tuple(completions), margin, Source("rows.jsonl", 1), (True, True)))
    return rows


@pytest.fixture(scope="session")
def demonstrations(pairs: list[Example]) -> list[Example]:
    return [Example(row.prompt_ids, row.completion_ids[:1], None, row.source, (True,)) for row in pairs]


@pytest.fixture
def descent(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Callable[..., TorchEngine]:
    """Engines whose step takes the gradient itself off float64 weights, so that it can be read off them exactly."""

    def build(kind: str = "language", max_grad_norm: float = float("inf")) -> TorchEngine:
        torch.manual_seed(0)
        load: Any = {"language": load_language_model, "scalar": load_scalar_model}[kind]
        model = load(ModelConfig(init=tiny_init), tokenizer, WHOLE).double()
        return engine_around(model, max_grad_norm)

    return build


@pytest.fixture
def engine_of() -> Callable[..., TorchEngine]:
    """An engine around a model of the test's own, of the same kind."""
    return engine_around


def engine_around(model: nn.Module, max_grad_norm: float = float("inf")) -> TorchEngine:
    optimizer = SGD(model.parameters(), lr=1.0)
    scheduler = ConstantLR(optimizer, factor=1.0)
    config = DistributedConfig(device=Device.cpu)
    return TorchEngine(model, optimizer, scheduler, config=config, max_grad_norm=max_grad_norm)


@pytest.fixture(scope="session")
def samples_of() -> Callable[[list[list[str]]], Samples]:
    """[G][n] texts to Samples: a text's tokens are its letters' codes and an EOS (2); one in capitals lacks it."""

    def build(texts: list[list[str]]) -> Samples:
        records = [
            Record([{"role": "user", "content": f"prompt {row}"}], (), None, Source("rows.jsonl", row + 1))
            for row in range(len(texts))
        ]
        replies = [[reply(text) for text in row] for row in texts]
        examples = [
            Example(
                prompt_ids=np.arange(10, 14 + row, dtype=np.int32),
                completion_ids=tuple(reply.ids for reply in row_replies),
                margin=None,
                source=Source("rows.jsonl", row + 1),
                finished=tuple(reply.finished for reply in row_replies),
            )
            for row, row_replies in enumerate(replies)
        ]
        return Samples(records, examples, replies)

    return build


def reply(text: str) -> Reply:
    finished = not text.isupper()
    return Reply(np.array([ord(letter) for letter in text] + [2] * finished, dtype=np.int32), finished, text)
