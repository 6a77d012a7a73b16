"""The pages of all keys and all metrics, from the code that holds them: `recipes/keys.md` and `recipes/metrics.md`."""

import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf

from alignment.cli.help import choices_of, field_docs, shown_value
from alignment.cli.sources import schema
from alignment.config.metrics import FAMILIES, METRICS
from alignment.config.outside import is_outside
from alignment.config.run import RunConfig, TrainingConfig
from alignment.config.tasks import TASKS

HEAD = """# Keys

Every key of every task: its name, its default, and below them its meaning and the values that it may have. A recipe
says what differs from these defaults: `alignment run RECIPE --help` shows the values that a recipe has,
`--help model.lora` those of one group, with all that is said of them here. Keys are set on the command line by
`key=value`, in YAML by nesting. This page is made from the code: `python scripts/write_reference.py`.
"""
METRICS_HEAD = """# Metrics

What the rows of `metrics.jsonl` hold: the means of the steps since the row before. A metric of an evaluation has its
name behind `eval/`, and with several held-out sets behind `eval/NAME/`. `alignment status RUN --all` shows the newest
row with these words. This page is made from the code: `python scripts/write_reference.py`.

| metric | meaning | unit |
|---|---|---|
"""
SHARED = ("model", "data", "train", "batch", "checkpoint", "resume", "log", "distributed", "launch", "cluster")
ABOUT = {
    "sft": "Supervised fine-tuning",
    "reward": "Reward models from pairs",
    "reward_regression": "Reward models from scores",
    "reward_process": "Process reward models",
    "dpo": "DPO",
    "orpo": "ORPO",
    "simpo": "SimPO",
    "cpo": "CPO and SLiC",
    "kto": "KTO",
    "online_dpo": "Online DPO",
    "ppo": "PPO, GRPO, RLOO, REINFORCE++",
    "rejection": "Rejection sampling",
    "evaluate": "Evaluation",
    "pipeline": "Pipelines",
}
Above = dict[str, str]
"""The keys of a group, as a page shows them but for what stands before each -> where it has shown them."""


def keys_page() -> str:
    """The whole page, in Markdown."""
    trees = {name: schema(root) for name, root in TASKS.items() if not is_outside(name)}
    trained = trees["sft"]
    above: Above = {}
    lines = [HEAD, "## Every run\n", *_rows(trained, "", _plain_keys(RunConfig, trained), "Every run", above)]
    for part in SHARED:
        if part in trained:
            lines += [f"\n## {part}\n", f"{_whose(part, trees)}\n", *_rows(trained, "", [part], part, above)]
    shared = {*SHARED, *get_type_hints(TrainingConfig)}
    for name, tree in trees.items():
        own = [key for key in map(str, tree) if key not in shared]
        if own:
            heading = f"{ABOUT[name]} (`task: {name}`)"
            rows = [*_rows(tree, "", own, heading, above)] or ["No keys of its own: those above are all."]
            lines += [f"\n## {heading}\n", *rows]
    return "\n".join(lines) + "\n"


def metrics_page() -> str:
    """The whole page, in Markdown."""
    families = {f"{start}...": each for start, each in FAMILIES.items()}
    rows = [f"| `{name}` | {_cell(each.meaning)} | {each.unit} |" for name, each in (METRICS | families).items()]
    return METRICS_HEAD + "\n".join(rows) + "\n"


def _plain_keys(root: type[RunConfig], tree: DictConfig) -> list[str]:
    """Those of its own that stand alone."""
    return [name for name in get_type_hints(root) if name in tree and name not in SHARED]


def _whose(part: str, trees: dict[str, DictConfig]) -> str:
    """Which tasks have these keys, or the fewer that have not."""
    lacking = [name for name, tree in trees.items() if part not in tree]
    but = f" but {', '.join(f'`{name}`' for name in lacking)}" if lacking else ""
    return f"Keys of every task{but}."


def _rows(tree: DictConfig, prefix: str, names: list[str], heading: str, above: Above) -> Iterator[str]:
    """The keys `names` of a group, in the section `heading`. `above` takes up the groups that it shows."""
    owner: Any = OmegaConf.get_type(tree)
    docs, hints = field_docs(owner), get_type_hints(owner)
    for name in names:
        node = None if OmegaConf.is_missing(tree, name) else tree._get_node(name)
        if isinstance(node, DictConfig) and not node._is_none() and is_dataclass(OmegaConf.get_type(node)):
            keys, group = list(map(str, node)), f"{prefix}{name}"
            alike = "\n".join(_rows(node, "", keys, heading, {}))
            if alike in above:
                there = above[alike].removeprefix(f"`{group}.*` ")
                yield f"- `{group}.*`, as {there}{_below(docs.get(name, ''))}"
                continue
            if len(keys) > 1:
                above[alike] = f"`{group}.*` in [{heading.partition(' (')[0]}](#{_anchor(heading)})"
            if docs.get(name):
                yield f"- `{group}`, the keys below{_below(docs[name])}"
            yield from _rows(node, f"{group}.", keys, heading, above)
            continue
        value = "required" if OmegaConf.is_missing(tree, name) else f"`{shown_value(tree, name)}`"
        yield f"- `{prefix}{name}`, {value}{_below(docs.get(name, ''))}"
        yield from _members(hints[name])
        yield from _entries(hints[name])


def _anchor(heading: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _below(text: str) -> str:
    """A key's words, on the line beneath it."""
    return f"\\\n  {_marked(text)}" if text.strip() else ""


def _members(hint: Any) -> Iterator[str]:
    """The values of a choice, each with its words."""
    kind = choices_of(hint)
    said = {} if kind is None else field_docs(kind)
    yield from (f"  - `{each.value}`: {_marked(_first_down(said[each.name]))}" for each in kind or ())


def _entries(hint: Any) -> Iterator[str]:
    """The keys of each entry of a mapping or a list that a user fills."""
    for kind in get_args(hint):
        if isinstance(kind, type) and is_dataclass(kind):
            said = field_docs(kind)
            yield "  - An entry has"
            yield from (f"    - `{name}`: {_marked(_first_down(said[name]))}" for name in get_type_hints(kind))


def _first_down(text: str) -> str:
    """Within a sentence."""
    text = " ".join(text.split()).rstrip(".")
    return text if any(sign.isupper() for sign in text.split()[0][1:]) else text[:1].lower() + text[1:]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _marked(text: str) -> str:
    """Words as Markdown shows them: outside of code, what would be read as a tag or as emphasis is a plain sign."""
    pieces = " ".join(text.split()).split("`")
    pieces[::2] = [re.sub(r"[*]|<(?=[A-Za-z/|])", r"\\\g<0>", piece) for piece in pieces[::2]]
    return "`".join(pieces)
