"""The main job, whole, through the installed command: every method beats the SFT model by its learning."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from omegaconf import OmegaConf

COMMAND = str(Path(sys.executable).with_name("alignment"))
METHODS = ["dpo", "orpo", "ppo", "rejection", "best of 8"]


def run(folder: Path) -> str:
    command = [COMMAND, "run", "tiny_pipeline", f"output_dir={folder}", "log.progress=false"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    run(folder)
    return folder


def test_every_method_beats_sft_on_held_out_prompts(folder):
    summary = json.loads((folder / "evaluate" / "summary.json").read_text())
    methods = {method["name"]: method for method in summary["methods"]}
    assert list(methods) == ["sft", *METHODS]
    assert methods["sft"]["gold"]["high"] < 0.7, "the task must leave room above SFT"
    for name in METHODS:
        assert methods[name]["gold_difference"]["low"] > 0, name


def test_the_reward_model_is_surer_of_wider_margins(folder):
    summary = json.loads((folder / "evaluate" / "summary.json").read_text())
    accuracies = [bucket["accuracy"]["mean"] for bucket in summary["reward_model"]["accuracy_by_margin"]]
    assert accuracies[-1] > accuracies[0]


def test_ppo_logs_learned_reward_gold_score_and_kl(folder):
    rows = [json.loads(line) for line in (folder / "ppo" / "metrics.jsonl").read_text().splitlines()]
    assert all({"loss", "reward", "gold", "kl"} <= row.keys() for row in rows)
    assert rows[0]["kl"] == 0
    assert rows[-1]["reward"] > rows[0]["reward"]
    assert rows[-1]["gold"] > rows[0]["gold"]
    target = OmegaConf.load(folder / "ppo" / "config.yaml").kl.target
    assert max(row["kl"] for row in rows) < target


def test_no_alarm_is_raised_where_nobody_is_fooled(folder):
    rows = [json.loads(line) for line in (folder / "ppo" / "metrics.jsonl").read_text().splitlines()]
    assert [row["alarm/over_optimisation"] for row in rows[19:]] == [0] * 11  # from the first full window on
    assert 'class="alarm"' not in (folder / "evaluate" / "report.html").read_text()


def test_the_report_stands_alone(folder):
    html = (folder / "evaluate" / "report.html").read_text()
    HTMLParser().feed(html)
    plots = 2 + 5 + 4  # methods and calibration; one for each of five runs; four for PPO
    assert html.count("<svg") == plots
    assert not re.search(r"""(src|href)=["']?(https?:)?//|url\(["']?http|@import|<script""", html)


def test_run_again_nothing_is_done_twice(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert run(folder).count("unchanged, skipped") == 8
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
