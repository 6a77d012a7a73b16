"""The pretrained model that scripts/real_model.sh makes, short pairs of HH-RLHF, and the installed command on both."""

import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

REPOSITORY = Path(__file__).parents[2]
COMMAND = str(Path(sys.executable).with_name("alignment"))
NUM_PAIRS = 4
Messages = list[dict[str, str]]


def _made_by_the_script() -> Path:
    spec = spec_from_file_location("real_model", REPOSITORY / "scripts" / "real_model.py")
    assert spec is not None and spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    return Path(script.model_folder())


FOLDER = _made_by_the_script()  # now, before a fixture gives all tests a cache of their own


@dataclass(frozen=True)
class Pair:
    """A row of HH-RLHF, taken apart here and not by the package."""

    prompt: Messages
    chosen: str
    rejected: str


@pytest.fixture(scope="session")
def real_model() -> Path:
    if not FOLDER.is_dir():
        pytest.skip("no pretrained model: bash scripts/real_model.sh makes it")
    return FOLDER


@pytest.fixture(scope="session")
def real_tokenizer(real_model: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(real_model)


def _taken_apart(dialogue: str) -> tuple[Messages, str]:
    parts = re.split(r"\n\n(Human|Assistant):", dialogue)[1:]
    names = {"Human": "user", "Assistant": "assistant"}
    turns = [{"role": names[n], "content": text.strip()} for n, text in zip(parts[::2], parts[1::2], strict=True)]
    return turns[:-1], turns[-1]["content"]


def _is_plain(prompt: Messages, replies: tuple[str, str]) -> bool:
    alternates = all(turn["role"] == ("user", "assistant")[k % 2] for k, turn in enumerate(prompt))
    return alternates and len(prompt) % 2 == 1 and all(replies) and replies[0] != replies[1]


@pytest.fixture(scope="session")
def hh(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Pair]]:
    """The shortest pairs with more than one turn of the user's, as a file of HH-RLHF's form and taken apart."""
    kept: list[tuple[int, str, Pair]] = []
    with gzip.open(shared / "data" / "hh_harmless.train.jsonl.gz", "rt") as file:
        for line in file:
            row = json.loads(line)
            (prompt, chosen), (other, rejected) = _taken_apart(row["chosen"]), _taken_apart(row["rejected"])
            if prompt == other and len(prompt) > 1 and _is_plain(prompt, (chosen, rejected)):
                kept.append((len(row["chosen"] + row["rejected"]), line, Pair(prompt, chosen, rejected)))
    kept = sorted(kept, key=lambda each: each[0])[:NUM_PAIRS]
    path = tmp_path_factory.mktemp("hh") / "pairs.jsonl"
    path.write_text("".join(line for _, line, _ in kept))
    return path, [pair for *_, pair in kept]


@dataclass(frozen=True)
class Text:
    """A prompt with one reply, as the template lays it out, up to what ends the reply."""

    ids: Tensor  # [1, P + C]
    start: int  # P

    @property
    def reply(self) -> Tensor:
        return self.ids[0, self.start :]


@pytest.fixture(scope="session")
def laid_out(real_tokenizer: PreTrainedTokenizerBase) -> Callable[[Messages, str], Text]:
    def text(prompt: Messages, reply: str) -> Text:
        turns = [*prompt, {"role": "assistant", "content": reply}]
        shown = real_tokenizer.apply_chat_template(turns, tokenize=False)
        begun = real_tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        assert shown.startswith(begun) and shown.endswith("<|im_end|>\n")
        whole, prefix = (real_tokenizer(s, add_special_tokens=False)["input_ids"] for s in (shown[:-1], begun))
        assert whole[: len(prefix)] == prefix and whole[-1] == real_tokenizer.eos_token_id
        return Text(torch.tensor([whole]), len(prefix))

    return text


@pytest.fixture(scope="session")
def texts(hh: tuple[Path, list[Pair]], laid_out: Callable[[Messages, str], Text]) -> list[tuple[Text, Text]]:
    """Chosen and rejected of each pair."""
    return [(laid_out(pair.prompt, pair.chosen), laid_out(pair.prompt, pair.rejected)) for pair in hh[1]]


@torch.no_grad()
def _reply_logprobs(hf: PreTrainedModel, text: Text) -> Tensor:
    logits = hf(text.ids).logits[0, text.start - 1 : -1]
    return logits.log_softmax(-1).gather(1, text.reply[:, None])[:, 0]


@pytest.fixture(scope="session")
def plain() -> Callable[[Path, list[Text]], list[Tensor]]:
    """`plain(folder, texts)`: of each reply its tokens' log-probs [C] (nats) by transformers in float32, one text at a
    time, without mask or padding."""

    def logprobs(folder: Path, texts: list[Text]) -> list[Tensor]:
        hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return [_reply_logprobs(hf, text) for text in texts]

    return logprobs


@dataclass(frozen=True)
class Ran:
    """A finished run of the command."""

    folder: Path

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.table("metrics.jsonl")

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def table(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Ran]]:
    """`run("sft", "model.path=...", ...)`; what a module's runs leave, half a gigabyte a model, goes with it."""
    folders = []

    def call(recipe: str, *words: str, within: Path | None = None) -> Ran:
        folder = tmp_path_factory.mktemp("run")
        folders.append(folder)
        command = [COMMAND, "run", recipe, *words, "log.progress=false", f"output_dir={folder}"]
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
        ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=within)
        assert ran.returncode == 0, ran.stderr
        return Ran(folder)

    yield call
    for folder in folders:
        rmtree(folder)
