"""The verb `evaluate`."""

import re
from collections.abc import Sequence
from os.path import expanduser
from pathlib import Path
from unicodedata import normalize

from alignment.cli.parser import Parser, is_setting
from alignment.user_error import fail

PAGE = """usage: alignment evaluate [MODEL ...] [--data FILE] [--reward MODEL] [--pairs FILE] [key=value ...]

Models side by side on held-out rows, in one command: `alignment run evaluate` in other words. A MODEL is a run's
folder, a model's or an adapter's folder, or a name on the hub; the first is what the others are compared with. The
table is printed, and report.html, summary.json and scores.jsonl (a row for each prompt) lie in output_dir.

  alignment evaluate runs/sft runs/dpo --data prompts.jsonl                  replies: length, diversity, KL to the first
  alignment evaluate runs/sft runs/dpo --data prompts.jsonl --reward runs/reward     and what a reward model gives them
  alignment evaluate runs/sft --data rows.jsonl num_samples=0                perplexity of the rows' completions alone
  alignment evaluate runs/sft --data rows.jsonl quantized=[int8,nf4]         itself in 8 and 4 bits: perplexity, KL
  alignment evaluate runs/reward --pairs pairs.jsonl                         a reward model's accuracy, and where

  --data FILE      rows with prompts; of completions that they have, the perplexity is measured too
  --reward MODEL   a reward model, of any family: it scores the replies, and is measured on --pairs
  --pairs FILE     held-out pairs: accuracy by rating, difference in length, source, subset and tags; calibration
  key=value        any key of the recipe: generation.max_new_tokens=256 data.eval.limit=200 output_dir=FOLDER;
                   alignment run evaluate --help lists them
"""


def main(arguments: list[str]) -> None:
    parser = Parser("evaluate")
    parser.add_argument("words", nargs="*")
    words = {"data.eval.path": "--data", "reward": "--reward", "pairs.eval.path": "--pairs"}
    for flag in words.values():
        parser.add_argument(flag)
    given = parser.parse_intermixed_args(arguments)

    models = [word for word in given.words if not is_setting(word)]
    own = [word for word in given.words if is_setting(word)]
    named = any(word.startswith(("runs", "reward=")) for word in own)
    if not models and given.reward is None and not named:
        fail("evaluate needs a model: alignment evaluate MODEL --data FILE, or --reward MODEL --pairs FILE")
    if (file := next((model for model in models if Path(model).is_file()), None)) is not None:
        fail(f"evaluate: MODEL must be a folder, got the file {file!r}; rows are named by --data FILE or --pairs FILE")
    if given.pairs is not None and given.reward is None and not named:
        given.reward, models = _reward_model_of(models, has_data=given.data is not None)
        words["reward"] = "MODEL"

    if models and given.data is None and not any(word.lstrip("+").startswith("data") for word in own):
        fail("evaluate needs prompts for its models: --data FILE, held-out rows; of a reward model pairs: --pairs FILE")

    from alignment.cli.evaluation import RECIPE, as_typed, set_to
    from alignment.cli.run import run_recipe

    values = {  # key -> what it is set to, where its word is given
        "data.eval.path": given.data,
        "reward": None if given.reward is None else given.reward,
        "pairs.eval.path": given.pairs,
    }
    overrides = [set_to(key, value) for key, value in values.items() if value is not None]
    typed = {key: word for key, word in words.items() if values[key] is not None}
    if models:
        names = names_of(models)
        overrides.append(set_to("runs", dict(zip(names, models, strict=True))))
        typed |= {f"runs.{name}": "MODEL" if len(models) == 1 else f"MODEL {name}" for name in names}
    run_recipe(RECIPE, [*overrides, *as_typed(own)], [], sweep=False, typed=typed)


def _reward_model_of(models: list[str], *, has_data: bool) -> tuple[str, list[str]]:
    """The one that pairs are asked for, of which only a reward model knows, and those that are left."""
    from alignment.config.folders import model_of
    from alignment.config.hub import located
    from alignment.config.model_kinds import is_language_model

    whose = "evaluate: --pairs FILE measures a reward model"
    if len(models) != 1 or has_data:
        fail(f"{whose}, which --reward MODEL names beside {len(models)} models that reply to --data FILE")
    if is_language_model(located(model_of(expanduser(models[0])))):
        ways = (
            f"alignment evaluate {models[0]} --data FILE draws replies of it, with num_samples=0 its perplexity alone"
        )
        fail(f"{whose} (--reward MODEL), and {models[0]!r} is a language model without a reward head: {ways}")
    return models[0], []


def names_of(models: Sequence[str]) -> list[str]:
    """What each is called in the table: its folder's name, or its run's, and a sweep's job by both; numbered where two
    have the same."""
    names: list[str] = []
    for model in models:
        path = Path(model.partition("@")[0].removeprefix("hf://")).expanduser()
        path = path.resolve() if path.exists() else path
        name = _as_key(path.parent if path.name == "model" and path.parent.name else path)
        free = (f"{name}-{number}" for number in range(2, len(models) + 2))
        names.append(next(each for each in (name, *free) if each not in names))
    return names


def _as_key(path: Path) -> str:
    """Its name in the signs that a key may have; no number and no word of YAML's, as which it would be read."""
    letters = normalize("NFKD", path.name).encode("ascii", "ignore").decode()
    name = re.sub(r"[^\w-]+", "_", letters).strip("_") or "model"
    try:
        float(name)
    except ValueError:
        return name if name.lower() not in ("true", "false", "null") else f"model-{name}"
    return f"{_as_key(path.parent)}-{name}"
