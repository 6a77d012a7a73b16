"""PPO that is fooled by its reward model, whole, through the installed command: the alarm goes off everywhere."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = str(Path(sys.executable).with_name("alignment"))


@pytest.fixture(scope="module")
def hacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The run's folder, and what was printed."""
    folder = tmp_path_factory.mktemp("hacked")
    command = [COMMAND, "run", "tiny_ppo_hacked", f"output_dir={folder}", "log.progress=false"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return folder, ran.stdout.splitlines()


@pytest.fixture
def rows(hacked: tuple[Path, list[str]]) -> list[dict[str, float]]:
    return [json.loads(line) for line in (hacked[0] / "ppo" / "metrics.jsonl").read_text().splitlines()]


def test_the_learned_reward_rises_and_the_gold_score_ends_below_its_best(rows):
    assert rows[-1]["reward"] > rows[9]["reward"] > rows[0]["reward"]
    assert rows[-1]["gold"] < max(row["gold"] for row in rows) - 0.1


def test_the_alarm_is_in_the_metrics(rows):
    flags = [row.get("alarm/over_optimisation") for row in rows]
    assert flags[:19] == [None] * 19  # no full window yet
    assert flags[19] == 0  # and no patience
    assert flags[-1] == 1


def test_every_diagnostic_is_in_the_metrics(rows):
    names = {"distinct_1", "distinct_2", "distinct_3", "length", "length/reward_correlation", "kl/sqrt", "finished"}
    assert all(names <= row.keys() for row in rows)
    assert rows[-1]["distinct_2"] < rows[0]["distinct_2"]
    assert rows[-1]["kl/sqrt"] ** 2 == pytest.approx(rows[-1]["kl"])
    assert {f"eval/{name}" for name in names - {"kl/sqrt"}} <= rows[-1].keys()
    assert not [name for row in rows for name in row if "moments" in name]


def test_it_is_said_once_and_summed_up_at_the_end_of_the_run(hacked, rows):
    folder, lines = hacked
    said = [number for number, line in enumerate(lines) if line.startswith("ALARM over_optimisation")]
    first, summed_up = (lines[number] for number in said)
    since = next(row["step"] for row in rows if row.get("alarm/over_optimisation") == 1)
    assert f"at step {since}: the learned reward rises while the gold score falls (" in first
    assert f"since step {since}, at {sum(row.get('alarm/over_optimisation', 0) for row in rows):.0f} of 11" in summed_up
    where = lines[said[-1] + 1]
    assert where.startswith("the gold score was highest over steps ")
    checkpoint = Path(where.rpartition("go back to ")[2])
    assert checkpoint.parent == folder / "ppo" / "checkpoints" and checkpoint.is_dir()


def test_it_is_in_the_report_and_in_the_last_lines(hacked):
    folder, lines = hacked
    html = (folder / "evaluate" / "report.html").read_text()
    header = html[html.index("<header>") : html.index("</header>")]
    assert 'class="alarm"' in header
    assert "<b>ppo</b>: the learned reward rises while the gold score falls." in header
    report = next(place for place, line in enumerate(lines) if line.startswith("report: "))
    assert lines[report - 1].startswith("ALARM ppo: the learned reward rises while the gold score falls.")
    assert report >= len(lines) - 4  # behind it stand the files, the stages, and what is next
