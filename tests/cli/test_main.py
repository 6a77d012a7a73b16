"""What the command says of itself, and where it finds recipes."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.cli.help import field_docs
from alignment.cli.main import VERBS
from alignment.config.train import TrainConfig

MINE = "# My own\ndefaults:\n  - task: sft\n  - model: tiny\n  - data: toy\n  - _self_\ntrain: {max_steps: 7}\n"
REPOSITORY = Path(__file__).parents[2]


def shipped_recipe(name: str) -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / "recipes" / f"{name}.yaml").read_text())


def python(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_verb(flag: str, alignment: Callable[..., Any]) -> None:
    ended = alignment(flag)
    assert ended.code == 0 and ended.err == []
    modules = {file.stem for file in (REPOSITORY / "alignment" / "cli" / "verbs").glob("[a-z]*.py")}
    assert modules == set(VERBS)
    for word in (*(f"alignment {verb} " for verb in modules), "--version", "--help"):
        assert word in ended.out


def test_a_name_that_is_no_text_is_told_at_once(alignment: Callable[..., Any]) -> None:
    """A run would end with a traceback behind its last step, where it writes the name down."""
    ended = alignment("run", "tiny_sft", "data.train.path=caf\udce9.jsonl")
    assert ended.code == 2
    assert ended.err == [
        "alignment: names of files must be UTF-8, got 'data.train.path=caf\\udce9.jsonl': give it another name"
    ]


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_a_page_of_its_own(verb: str, alignment: Callable[..., Any]) -> None:
    pages = [alignment(verb, *words) for words in (["-h"], ["--help"], ["--help", "-h"])]
    assert {(page.code, *page.err) for page in pages} == {(0,)}
    assert len({page.out for page in pages}) == 1
    assert pages[0].out.startswith(f"usage: alignment {verb}") and len(pages[0].out.splitlines()) > 3
    assert all(len(line) <= 120 for line in pages[0].out.splitlines())


@pytest.mark.parametrize(
    ("verb", "flags"),
    [
        ("run", ["--cfg job", "--resolve", "-m", "--config-dir", "--help", "key=value", "group=preset"]),
        ("check", ["--cfg job", "--config-dir", "key=value"]),
        ("submit", ["--dry-run", "--cfg job", "-m", "--config-dir"]),
        ("recipes", ["--config-dir"]),
        ("logs", ["-f", "--rank"]),
        ("export", ["--step", "--out"]),
    ],
)
def test_a_page_names_the_flags_of_its_verb(verb: str, flags: list[str], alignment: Callable[..., Any]) -> None:
    page = alignment(verb, "--help").out
    assert [flag for flag in flags if flag not in page] == []


def test_version(alignment: Callable[..., Any]) -> None:
    assert alignment("--version").out == version("preference-alignment") + "\n"


def test_recipes_are_listed_one_line_each_with_their_first_comment(alignment: Callable[..., Any]) -> None:
    ended = alignment("recipes")
    files = sorted((REPOSITORY / "recipes").glob("*.yaml"))
    lines = ended.out.splitlines()
    assert ended.code == 0 and len(lines) == len(files)
    for line, file in zip(lines, files, strict=True):
        name, about = line.split(maxsplit=1)
        assert name == file.stem
        assert file.read_text().startswith(f"# {about}\n")


def test_own_recipes_are_listed_and_shadow_shipped_ones(alignment: Callable[..., Any], own: Callable[..., str]) -> None:
    own("mine", MINE)
    own("tiny_sft", MINE)
    own("bare", "seed: 1\n")
    lines = dict((line + " ").split(" ", 1) for line in alignment("recipes", "--config-dir", "own").out.splitlines())
    assert lines["mine"].strip() == "My own"
    assert lines["tiny_sft"].strip() == "My own"
    assert lines["bare"].strip() == ""
    assert "tiny_dpo" in lines


def test_help_of_a_recipe_shows_presets_and_keys(alignment: Callable[..., Any]) -> None:
    ended = alignment("run", "tiny_dpo", "loss.beta=0.25", "--help")
    assert ended.code == 0 and ended.err == []
    lines = ended.out.splitlines()
    about = (REPOSITORY / "recipes" / "tiny_dpo.yaml").read_text().splitlines()[0].removeprefix("# ")
    assert lines[0] == f"tiny_dpo: {about}"
    for group in ("model", "data", "distributed", "cluster"):
        for file in (REPOSITORY / "conf" / group).glob("*.yaml"):
            about = file.read_text().splitlines()[0].removeprefix("# ")
            assert [line for line in lines if f" {group}={file.stem} " in line and line.endswith(about)]
    assert any(line.startswith("* model=tiny ") for line in lines)
    assert any(line.split("#")[0].strip() == "loss.beta=0.25" for line in lines)
    schedule = next(place for place, line in enumerate(lines) if line.strip().startswith("train.schedule="))
    assert "One of cosine, linear, constant" in " ".join(line.split("#")[-1].strip() for line in lines[schedule:][:3])
    assert "hydra" not in ended.out.replace("${hydra:job.config_name}", "")
    assert all(len(line) <= 120 for line in lines[lines.index(next(line for line in lines if "Keys" in line)) :])


def test_help_shows_what_every_reader_looks_for_first_and_where_a_run_goes_last(alignment: Callable[..., Any]) -> None:
    keys = [
        line.strip() for line in alignment("run", "tiny_ppo", "--help").out.partition("Keys, set by")[2].splitlines()
    ]
    parts = list(dict.fromkeys(key.split(".")[0] for key in keys if re.match(r"[a-z_]+\.[a-z_.]+=", key)))
    assert parts[:3] == ["model", "data", "train"]
    assert parts[-6:] == ["checkpoint", "resume", "log", "distributed", "launch", "cluster"]
    assert {"advantage", "reward", "kl", "generation"} <= set(parts[3:-6])


def test_help_of_one_group_of_keys(alignment: Callable[..., Any]) -> None:
    shown = alignment("run", "tiny_dpo", "--help", "model.lora", "model.lora.rank=4").out.splitlines()
    keys = [line.split("=")[0].strip() for line in shown[2:] if "=" in line]
    names = ["rank", "alpha", "rank_pattern", "alpha_pattern", "rslora", "dora", "init", "merge_every"]
    names += ["restart_warmup_steps", "dropout", "merge", "plus", "targets", "target_parameters", "modules_to_save"]
    assert keys == [f"model.lora.{name}" for name in names]
    assert any(line.strip().startswith("model.lora.rank=4") for line in shown)
    init = next(place for place, line in enumerate(shown) if line.strip().startswith("model.lora.init="))
    values = [line.split("#")[-1].strip() for line in shown[init + 1 : init + 3]]
    assert values == ["default: As a linear layer: uniform.", "gaussian: Normal, of standard deviation 1 / rank."]
    assert "loss.beta=0.3" in alignment("run", "tiny_dpo", "loss.beta", "--help").out.replace(" ", "")
    wrong = alignment("run", "tiny_dpo", "--help", "model.lra")
    assert wrong.code == 2
    assert wrong.err[0].startswith("alignment: tiny_dpo: --help model.lra: there is no group of keys 'model.lra'")
    assert "(did you mean 'model.lora'?)" in wrong.err[0]


def test_help_of_an_own_recipe(alignment: Callable[..., Any], own: Callable[..., str]) -> None:
    ended = alignment("run", own("mine", MINE), "--help")
    assert ended.out.startswith("mine: My own\n")
    assert "  train.max_steps=7 " in ended.out


def test_field_docs_are_the_strings_under_the_fields() -> None:
    docs = field_docs(TrainConfig)
    assert docs["eval_every"] == "Steps between evaluations; 0: only after the last step."
    assert "__post_init__" not in docs


@pytest.mark.parametrize(
    "words",
    [
        ["--cfg", "job", "tiny_dpo", "loss.beta=0.25", "seed=3"],
        ["tiny_dpo", "loss.beta=0.25", "--cfg", "job", "seed=3"],
        ["tiny_dpo", "--cfg", "job", "loss.beta=0.25", "seed=3"],
        ["tiny_dpo", "loss.beta=0.25", "seed=3", "-c", "job"],
    ],
)
def test_cfg_prints_the_config_wherever_it_stands(words: list[str], alignment: Callable[..., Any]) -> None:
    ended = alignment("run", *words)
    assert ended.code == 0 and ended.err == []
    printed = yaml.safe_load(ended.out)
    assert printed["loss"]["beta"] == 0.25
    assert printed["seed"] == 3
    assert printed["train"]["max_steps"] == shipped_recipe("tiny_dpo")["train"]["max_steps"]


def test_cfg_resolves_and_picks_a_package(alignment: Callable[..., Any]) -> None:
    out = alignment("run", "tiny_dpo", "--cfg", "job", "--resolve").out
    assert yaml.safe_load(out)["output_dir"].startswith("runs/tiny_dpo/20")
    out = alignment("run", "tiny_dpo", "--cfg", "job", "--package", "loss", "loss.beta=0.25").out
    assert "beta: 0.25" in out and "train" not in out


def test_a_path_runs_that_file_even_where_a_shipped_recipe_has_its_name(
    alignment: Callable[..., Any], own: Callable[..., str]
) -> None:
    for words in ([own("tiny_sft", MINE)], ["tiny_sft", "--config-dir", "own"], [own("mine", MINE)]):
        printed = yaml.safe_load(alignment("run", *words, "--cfg", "job").out)
        assert printed["train"]["max_steps"] == 7


def test_own_presets(alignment: Callable[..., Any], own: Callable[..., str], tmp_path: Path) -> None:
    own("mine", MINE)
    (tmp_path / "presets" / "model").mkdir(parents=True)
    (tmp_path / "presets" / "model" / "small.yaml").write_text("# Small\ninit: {model_type: gpt2}\n")
    folders = ["--config-dir", "presets"]
    for recipe in ("tiny_sft", "own/mine.yaml"):
        printed = yaml.safe_load(alignment("run", recipe, *folders, "model=small", "--cfg", "job").out)
        assert printed["model"]["init"] == {"model_type": "gpt2"}
    assert "model=small                               Small" in alignment("run", "tiny_sft", *folders, "-h").out


@pytest.mark.parametrize("words", [["tiny_sft"], ["own/mine.yaml"]])
def test_a_group_that_the_recipe_does_not_name(
    words: list[str], alignment: Callable[..., Any], own: Callable[..., str]
) -> None:
    own("mine", MINE)
    ended = alignment("run", *words, "distributed=gpu", "--cfg", "job")
    assert ended.code == 0, ended.err
    asked = yaml.safe_load(ended.out)["distributed"]
    assert (asked["device"], asked["precision"]) == ("cuda", "auto")
    assert "* distributed=gpu" in alignment("run", *words, "distributed=gpu", "--help").out


def test_an_own_recipe_may_build_on_a_shipped_one(alignment: Callable[..., Any], own: Callable[..., str]) -> None:
    recipe = own("mine", "# Mine\ndefaults:\n  - tiny_sft\n  - _self_\nseed: 5\n")
    printed = yaml.safe_load(alignment("run", recipe, "--cfg", "job").out)
    assert printed["seed"] == 5
    assert printed["train"]["max_steps"] == shipped_recipe("tiny_sft")["train"]["max_steps"]


def test_python_m_alignment_is_the_command(tmp_path: Path) -> None:
    ended = python("-m", "alignment", "run", "tiny_dpo", "loss.beta=-1", folder=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "alignment: tiny_dpo: loss.beta must be > 0 and finite, got -1.0\n"


@pytest.mark.parametrize(
    ("words", "unloaded"),
    [
        (["recipes"], ["torch", "hydra"]),
        (["--help"], ["torch", "hydra"]),
        (["run", "tiny_dppo"], ["torch", "hydra"]),
        (["run", "tiny_dpo", "loss.beta=-1"], ["transformers", "trl"]),
        (["run", "tiny_dpo", "--help"], ["transformers", "trl"]),
        (["submit", "tiny_dpo", "cluster=slurm", "--dry-run"], ["transformers", "trl"]),
        (["status", "gone"], ["torch", "hydra"]),
        (["run", "tiny_sft", "train.max_steps=1"], ["peft", "bitsandbytes", "trl", "datasets", "deepspeed"]),
        (
            ["run", "tiny_sft", "train.max_steps=1", "distributed=zero2", "distributed.device=cpu"],
            ["torch._inductor.lowering"],
        ),
    ],
)
def test_a_library_is_loaded_by_what_needs_it_alone(words: list[str], unloaded: list[str], tmp_path: Path) -> None:
    code = f"""
import sys
from alignment.cli.main import main
sys.argv = ["alignment", *{words}]
try:
    main()
except SystemExit:
    pass
print([name for name in {unloaded} if name in sys.modules], file=sys.stderr)
"""
    assert python("-c", code, folder=tmp_path).stderr.splitlines()[-1] == "[]"


def test_who_starts_processes_or_finds_a_run_finished_needs_no_transformers(tmp_path: Path) -> None:
    code = """
import sys
import alignment.tasks.pipeline
print([name for name in ("transformers", "datasets", "accelerate", "matplotlib") if name in sys.modules])
"""
    assert python("-c", code, folder=tmp_path).stdout == "[]\n"


def test_the_collector_rests_while_libraries_load_and_leaves_them_alone_afterwards(tmp_path: Path) -> None:
    code = """
import gc
from alignment.process import importing
with importing():
    print(gc.isenabled())
frozen = gc.get_freeze_count()
made_later = [[] for _ in range(10_000)]
with importing():
    pass
print(frozen > 0, gc.get_freeze_count() == frozen, gc.isenabled())
"""
    assert python("-c", code, folder=tmp_path).stdout == "False\nTrue True True\n"


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_interrupted_before_there_is_anything_to_save(tmp_path: Path) -> None:
    words = ["-m", "alignment", "run", "tiny_sft", "train.max_steps=100000", "output_dir=out"]
    with subprocess.Popen(
        [sys.executable, "-u", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a shell's background
    ) as command:
        assert command.stdout is not None and command.stderr is not None
        try:
            assert any(line.startswith("precision: ") for line in command.stdout)
            command.send_signal(signal.SIGINT)
            stderr = command.stderr.read()
            assert command.wait(timeout=60) == 130
        finally:
            command.kill()  # where it has not ended, or this would wait for it for ever
    assert stderr == "alignment: interrupted\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "words", ["--help", "run --help", "recipes", "run tiny_dpo --help loss", "run tiny_dpo --cfg job"]
)
def test_a_standard_output_that_is_not_taken_is_one_line(words: str, unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "alignment", *words.split()]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, timeout=60)
    line = "alignment: the standard output cannot be written (No space left on device)\n"
    assert (ended.returncode, ended.stderr) == (2, line)


@pytest.mark.parametrize("words", ["--version", "run tiny_dpo --cfg job"])
def test_a_standard_output_that_is_closed_is_written_in_vain(words: str) -> None:
    command = ["sh", "-c", f'exec "{sys.executable}" -m alignment {words} >&-']
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
