"""What an evaluation has found of each model that it compares, from its summary.json."""

from pathlib import Path
from typing import Any

from alignment.config.errors import UserError
from alignment.runs.folder import RunFolder
from alignment.runs.notes import read_note

SCORES = ("gold", "reward", "kl", "length", "win_rate", "perplexity", "accuracy")  # of a method of an evaluation


def found(folder: Path) -> dict[str, dict[str, str]]:
    """method -> score -> its value, with its 95% interval where it has one; nothing of a run that is no evaluation.

    Raises:
        UserError: summary.json is damaged.
    """
    path = RunFolder(folder).summary
    summary = read_note(path)
    try:
        methods = {
            str(each["name"]): {score: _interval(each[score]) for score in SCORES if score in each}
            for each in summary.get("methods", [])
        }
        judged = summary.get("reward_model") or {}
        if "accuracy" in judged:
            methods["reward model"] = {"accuracy": _interval(judged["accuracy"])}
        return methods
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error


def _interval(value: Any) -> str:
    if not isinstance(value, dict):
        return f"{value:.4g}"
    return f"{value['mean']:.4g} [{value['low']:.3g}, {value['high']:.3g}]"
