"""README and the pages behind it: links lead somewhere, keys exist, and each command runs as it stands.

Commands are those of `bash` blocks; blocks of `sh` show what a test cannot do, such as installing the package.
"""

import gzip
import io
import json
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from alignment.cli.main import main
from alignment.cli.reference_pages import keys_page, metrics_page
from alignment.cli.sources import schema
from alignment.config.tasks import TASKS

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "alignment" / "README.md", *sorted((ROOT / "recipes").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")
QUOTED = re.compile(r"`([a-z_]+(?:\.[a-z_0-9]+)+)(?:=[^`]*)?`")
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def links(page: Path) -> list[str]:
    return [target for target, _ in LINK.findall(page.read_text()) if "://" not in target]


def blocks(page: Path, kind: str) -> list[str]:
    return [text for found, text in FENCED.findall(page.read_text()) if found == kind]


def commands(page: Path) -> list[str]:
    return [line for block in blocks(page, "bash") for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    assert [target for target in links(page) if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_anchors_are_those_of_headings(page: Path) -> None:
    """As GitHub makes them: in lower case, without signs, with a dash for a blank."""
    named = re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", page.read_text())
    lost = []
    for target, anchor in named:
        headings = re.findall(r"^#+ (.*)$", ((page.parent / target) if target else page).read_text(), re.MULTILINE)
        if anchor not in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]:
            lost.append(f"{target}#{anchor}")
    assert lost == []


def test_every_page_is_within_two_links_of_the_readme() -> None:
    near = {README}
    for _ in range(2):
        near |= {(page.parent / target).resolve() for page in near if page.suffix == ".md" for target in links(page)}
    assert [name(page) for page in PAGES if page not in near] == []


def test_the_readme_is_short() -> None:
    assert len(FENCED.sub("", README.read_text()).split()) <= 900


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_named_are_there(page: Path) -> None:
    named = re.findall(r"\b((?:scripts|tests|recipes|conf|alignment)/[\w/.*-]*\w)", page.read_text())
    assert [path for path in named if not any(ROOT.glob(path)) and not (page.parent / path).exists()] == []


def keys(tree: DictConfig, prefix: str = "") -> set[str]:
    """Every key, groups of keys too; a mapping that users fill ends in a dot."""
    found = set()
    for key in map(str, tree):
        node = None if OmegaConf.is_missing(tree, key) else tree._get_node(key)
        found.add(f"{prefix}{key}")
        if isinstance(node, DictConfig) and not node._is_none():
            kind = OmegaConf.get_type(node)
            found |= keys(node, f"{prefix}{key}.") if is_dataclass(kind) else {f"{prefix}{key}."}
    return found


KEYS = set().union(*(keys(schema(root)) for task, root in TASKS.items() if "." not in task))


OF_THE_COMMAND = [page for page in PAGES if name(page) not in ("alignment/README.md", "recipes/library.md")]


@pytest.mark.parametrize("page", OF_THE_COMMAND, ids=name)
def test_keys_that_are_named_exist(page: Path) -> None:
    parts = {key for key in KEYS if "." not in key}
    named = {key for key in QUOTED.findall(page.read_text()) if key.partition(".")[0] in parts}
    named = {key for key in named if not key.endswith((".py", ".yaml", ".jsonl", ".md", ".json"))}
    mappings = ("stages.", *(key for key in KEYS if key.endswith(".")))
    assert sorted(key for key in named if key not in KEYS and not key.startswith(mappings)) == []


@pytest.mark.parametrize(("page", "made"), [("keys", keys_page), ("metrics", metrics_page)])
def test_the_pages_of_keys_and_metrics_are_those_of_the_code(page: str, made: Callable[[], str]) -> None:
    assert (ROOT / "recipes" / f"{page}.md").read_text() == made(), "python scripts/write_reference.py"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_of_recipes_are_the_recipes(page: Path) -> None:
    """A recipe that a page shows whole is the file."""
    shown = [block for block in blocks(page, "yaml") if block.startswith("# ") and "defaults:" in block]
    shipped = {file.read_text() for file in (ROOT / "recipes").glob("*.yaml")}
    mine = [block for block in shown if not re.match(r"# \w+\.yaml\n", block)]
    assert [block.splitlines()[0] for block in mine if block not in shipped] == []


def test_the_full_size_recipes_are_shown_with_ones_own_model_and_data() -> None:
    shown = {shlex.split(line)[2] for line in commands(ROOT / "recipes" / "methods.md")}
    shipped = {file.stem for file in (ROOT / "recipes").glob("*.yaml")}
    assert shown == {recipe for recipe in shipped if not recipe.startswith("tiny_")}


@pytest.mark.parametrize("block", blocks(README, "python"))
def test_python_of_the_readme_runs(block: str) -> None:
    exec(compile(block, "README.md", "exec"), {})


QUESTIONS = ["What does a cow say?", "What is two plus two?", "Name a colour.", "Who are you?"]
TRAINING = ["train.max_steps=2", "train.epochs=null", "batch.size=4", "train.warmup_ratio=0", "train.warmup_steps=0"]
DRAWING = ["generation.max_new_tokens=6"]
STOP = "generation.stop=[e,a,o,i]"
FEW = {  # of the full-size recipes, which are for larger models and more rows
    **{recipe: [*TRAINING, *DRAWING, "ppo.mini_batches=2"] for recipe in ("ppo", "reinforce_pp")},
    **{recipe: [*TRAINING, *DRAWING, "num_samples=2"] for recipe in ("grpo", "rloo")},
    "online_dpo": [*TRAINING, *DRAWING],
    "iterative_dpo": [
        *(f"stages.draw_{number}.set.{word}" for number in (1, 2, 3) for word in (*DRAWING, STOP)),
        *(
            f"stages.dpo_{number}.set.{word}"
            for number in (1, 2, 3)
            for word in ("batch.size=2", "train.warmup_ratio=0")
        ),
    ],
    "rejection": [*DRAWING, "num_samples=2", "generation.min_new_tokens=1", STOP],
    "evaluate": DRAWING,
}
GRADED = [{"prompt": q, "chosen": f"Well, {n}.", "rejected": "No", "rating": "better"} for n, q in enumerate(QUESTIONS)]
ROWS = {  # of the files that a preset reads
    "alpaca": [{"instruction": q, "input": "", "output": f"Moo {n}."} for n, q in enumerate(QUESTIONS)],
    "graded": GRADED,
    "hh_rlhf": [
        {side: f"\n\nHuman: {q}\n\nAssistant: {said}" for side, said in (("chosen", f"Yes {n}."), ("rejected", "No."))}
        for n, q in enumerate(QUESTIONS)
    ],
}


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase, tiny_init: dict[str, object]
) -> Path:
    """A pretrained model in `FOLDER`, prompts in `PROMPTS.jsonl` and `HELD_OUT.jsonl`, pairs in `PAIRS.csv`, replies
    with labels in `LABELED.jsonl`, with scores in `SCORED.jsonl`, in steps in `STEPS.jsonl`."""
    folder = tmp_path_factory.mktemp("pages")
    torch.manual_seed(0)
    init = {**tiny_init, "vocab_size": len(tokenizer), "max_position_embeddings": 4096}
    init |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(init.pop("model_type"), **init)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "FOLDER")
    tokenizer.save_pretrained(folder / "FOLDER")
    files = {
        "PROMPTS": [{"prompt": q} for q in QUESTIONS],
        "HELD_OUT": [{"prompt": q.replace("What", "Say what")} for q in QUESTIONS],
        "LABELED": [{"prompt": q, "completion": f"Well, {n}.", "label": n % 2 == 0} for n, q in enumerate(QUESTIONS)],
        "SCORED": [{"prompt": q, "completion": f"Well, {n}.", "score": n / 2} for n, q in enumerate(QUESTIONS)],
        "STEPS": [
            {"prompt": q, "completions": ["Well.", f"{n}."], "labels": [True, n > 1]} for n, q in enumerate(QUESTIONS)
        ],
    }
    for file, rows in files.items():
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = [",".join(GRADED[0]), *(",".join(f'"{cell}"' for cell in row.values()) for row in GRADED)]
    (folder / "PAIRS.csv").write_text("\n".join(table) + "\n")
    return folder


@pytest.fixture
def run(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """A command in the folder of `world`, in this process; what it printed."""
    monkeypatch.chdir(world)

    def call(words: list[str]) -> str:
        for preset, rows in ROWS.items():
            if f"data={preset}" in words:
                for ending in (".json.gz", ".jsonl.gz"):
                    with gzip.open(f"FILE{ending}", "wt") as file:
                        file.writelines(json.dumps(row) + "\n" for row in rows)
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.setattr(sys, "stdin", io.StringIO("Who are you?\n"))
        code: Any = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        finally:
            GlobalHydra.instance().clear()
        printed = capsys.readouterr()
        assert not code, f"{shlex.join(words)}: {printed.err}"
        return printed.out

    return call


def shortened(command: str) -> list[str]:
    """The words of a command, with what makes a full-size recipe small behind them."""
    words = shlex.split(command)
    if words[1] == "check" or any(word.startswith("launch.processes=") for word in words):
        return [*words, "--cfg", "job"]
    if words[1] == "run" and words[2].endswith(("_24gb", "_8x80gb")):  # run in tests/recipes, on tiny models
        return [*words, "--cfg", "job"]
    if words[1:3] == ["run", "tiny_ppo"]:  # whole in tests/recipes
        return [*words, "train.max_steps=2"]
    if words[1] != "run" or words[2].startswith("tiny_") or {"--help", "--cfg"} & set(words):
        return words
    return [*words, *FEW.get(words[2], TRAINING)]


SHOWING = [ROOT / "recipes" / "methods.md", *(page for page in PAGES if page.name != "methods.md" and commands(page))]


@pytest.mark.parametrize("page", SHOWING, ids=name)
def test_commands_run_one_after_the_other(page: Path, run: Callable[[list[str]], str], world: Path) -> None:
    """Those of methods.md first, whose runs the other pages use."""
    if page != SHOWING[0] and not (world / "runs" / "evaluate").exists():
        pytest.skip("needs the runs of methods.md, which this run of the tests leaves out")
    for command in commands(page):
        assert command.split()[0] in ("alignment", "python"), command
        if command.split()[0] == "alignment":
            warned = [line for line in run(shortened(command)).splitlines() if "WARNING" in line]
            assert all("cut at generation.max_new_tokens" in line for line in warned), command  # which is few here


def test_what_the_commands_of_the_methods_leave(world: Path) -> None:
    if not (world / "runs" / "evaluate").exists():
        pytest.skip("needs the runs of methods.md, which this run of the tests leaves out")
    for task in ("sft", "reward", "regression", "process", "dpo", "orpo", "simpo", "cpo", "kto", "ppo", "grpo"):
        logged = [json.loads(line) for line in (world / "runs" / task / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in logged] == [1, 2]
        assert 0 <= logged[0]["lr"] <= 2e-5
        assert (world / "runs" / task / "model" / "model.safetensors").is_file()
    assert (world / "runs" / "rounds" / "dpo_3" / "model" / "model.safetensors").is_file()
    assert (world / "runs" / "best" / "selected.jsonl").read_text().count("\n") >= 1
    compared = json.loads((world / "runs" / "evaluate" / "summary.json").read_text())
    assert {method["name"] for method in compared["methods"]} == {"sft", "dpo", "ppo"}
