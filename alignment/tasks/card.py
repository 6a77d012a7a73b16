"""The card of a saved model, README.md in its folder: what it was made from, by which method, on which rows, with which
settings, what was measured, and how to load it. The same run writes the same bytes.

Nothing of this machine is in it: of a path it has the last part, and the name of a run before `model`.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

from alignment.config.hub import Kind, located
from alignment.config.inputs import hub_names
from alignment.config.metrics import EVAL, PAIRS, STDERR, held_out
from alignment.config.online import PPOConfig
from alignment.config.run import TrainingConfig
from alignment.config.supervised import ScalarConfig
from alignment.config.tasks import task_name
from alignment.evaluate.rows import evaluations, value_words
from alignment.runs.contents import CARD, is_own_card
from alignment.runs.folder import RunFolder, noted_step
from alignment.runs.rows import read_rows
from alignment.runs.written import whole_file

LEFT_OUT = {  # of this machine, or of how the work was divided up
    "output_dir", "log", "checkpoint", "reference", "launch", "cluster", "distributed", "resume",
    "batch.max_tokens", "generation.batch_size", "generation.gather", "generation.vllm",
    "model.path", "model.tokenizer", "data.train.path", "data.eval.path",
}  # fmt: skip
METHODS = {  # task or estimator -> what it is called, and where it is from
    "sft": ("Supervised fine-tuning", "2203.02155"),
    "reward": ("A reward model that ranks pairs", "2307.09288"),
    "reward_regression": ("A reward model that gives scores", "2406.08673"),
    "reward_process": ("A process reward model", "2305.20050"),
    "dpo": ("Direct preference optimisation", "2305.18290"),
    "orpo": ("ORPO, odds ratio preference optimisation", "2403.07691"),
    "simpo": ("SimPO, simple preference optimisation", "2405.14734"),
    "cpo": ("CPO, contrastive preference optimisation", "2401.08417"),
    "kto": ("KTO, Kahneman-Tversky optimisation", "2402.01306"),
    "online_dpo": ("Online DPO", "2402.04792"),
    "gae": ("PPO, proximal policy optimisation", "1707.06347"),
    "grpo": ("GRPO, group relative policy optimisation", "2402.03300"),
    "dr_grpo": ("Dr. GRPO", "2503.20783"),
    "rloo": ("RLOO, REINFORCE leave-one-out", "2402.14740"),
    "reinforce_pp": ("REINFORCE++", "2501.03262"),
}


def write_cards(config: TrainingConfig, folder: Path) -> None:
    """Into every model that a finished run has left."""
    files = RunFolder(folder)
    rows = read_rows(files.metrics) if files.metrics.exists() else []
    for model in (files.model, files.best, files.model_ema):
        step = noted_step(model)  # of the best weights, which are not those of the last step
        write_card(config, model, rows if step is None else [row for row in rows if row["step"] <= step])


def write_card(config: TrainingConfig, model: Path, rows: list[dict[str, Any]]) -> None:
    """rows: of the run's log, up to where the model was saved. There is nothing to do where there is no model, or a
    card that somebody else has written."""
    is_alone = not config.model.lora.merge or config.model.has_soft_prompt
    for place, is_adapter in ((model, is_alone), (model / "adapter", True)):
        card = place / CARD
        if place.is_dir() and (not card.exists() or is_own_card(card)):
            text = _card(config, rows, is_adapter=is_adapter)
            if not card.exists() or card.read_text() != text:
                with whole_file(card) as beside:
                    beside.write_text(text)


def _card(config: TrainingConfig, rows: list[dict[str, Any]], *, is_adapter: bool) -> str:
    method, paper = METHODS.get(_method(config), (task_name(config), ""))
    lines = ["---", *_front(config, is_adapter=is_adapter), "---", ""]
    lines += [f"# {method}", ""]
    by = f"preference-alignment {version('preference-alignment')}"
    source = f" ([arXiv:{paper}](https://arxiv.org/abs/{paper}))" if paper else ""
    lines += [f"{method}{source}, of {_made_from(config)}, on {_made_on(config)}. Trained by {by}.", ""]
    lines += ["## Use", "", "```python", *_usage(config, is_adapter=is_adapter), "```", ""]
    row = _measured(rows)
    measured = _numbers(row)
    if measured:
        lines += ["## Measured", "", "| metric | value |", "|---|---|"]
        lines += [f"| {name} | {words} |" for name, words in measured.items()]
        step = row["step"]
        lines += ["", f"After step {step}; `eval/` is of the rows of data.eval, in brackets is a 95% interval.", ""]
    settings = dict(_settings(config, ""))
    if settings:
        lines += ["## Settings", "", "Those that differ from the defaults:", "", "```yaml"]
        lines += [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]
        lines += ["```", ""]
    return "\n".join(lines)


def _method(config: TrainingConfig) -> str:
    return config.advantage.estimator.value if isinstance(config, PPOConfig) else task_name(config)


def _front(config: TrainingConfig, *, is_adapter: bool) -> Iterator[str]:
    """What the hub reads of a card; JSON's strings are YAML's."""
    inherited = _of_base(config)
    on_hub = {key: name.repo for key, _, name in hub_names(config)}
    base = on_hub.get("model.path") or inherited.get("base_model")
    data = sorted({name.repo for _, _, name in hub_names(config) if name.kind is Kind.data})
    method = _method(config)
    is_scalar = isinstance(config, ScalarConfig)
    if base:
        yield f"base_model: {json.dumps(base)}"
    if data:
        yield f"datasets: {json.dumps(data)}"
    if "license" in inherited:
        yield f"license: {json.dumps(inherited['license'])}"
    yield f"library_name: {'peft' if is_adapter else 'transformers'}"
    yield f"pipeline_tag: {'text-classification' if is_scalar else 'text-generation'}"
    kind = ["reward-model"] if is_scalar else []
    yield f"tags: {json.dumps(['preference-alignment', {'gae': 'ppo'}.get(method, method), *kind])}"


def _of_base(config: TrainingConfig) -> dict[str, str]:
    """What the card of the model that the run began with says of its licence, and, where a run of ours has written it,
    of its own base."""
    card = Path(located(config.model.path)) / CARD if config.model.path is not None else None
    if card is None or not card.is_file():
        return {}
    front = re.match(r"---\n(.*?)\n---", card.read_text(errors="replace"), re.DOTALL)
    found = re.findall(r"^(license|base_model): *[\"']?([\w./-]+)[\"']? *$", front[1] if front else "", re.MULTILINE)
    return {key: value for key, value in found if key == "license" or is_own_card(card)}


def _made_from(config: TrainingConfig) -> str:
    if config.model.path is None:
        return f"a random {config.model.init['model_type']}"
    return f"`{_public('model.path', config.model.path, config)}`"


def _made_on(config: TrainingConfig) -> str:
    paths = config.data.train.paths()
    if not paths:
        return "the toy task's rows"
    return ", ".join(f"`{_public('data.train.path', path, config)}`" for path in paths)


def _public(key: str, path: str, config: TrainingConfig) -> str:
    """A path as others may read it: a name on the hub as it is, of another one its last part."""
    if any(given == path for _, given, _ in hub_names(config)):
        return path
    place = Path(path)
    is_of_run = RunFolder(place.parent).config.is_file()
    return f"{place.parent.name}/{place.name}" if is_of_run and place.parent.name else place.name


def _usage(config: TrainingConfig, *, is_adapter: bool) -> list[str]:
    from alignment.models.quantized import ASKED  # with transformers, which who starts processes needs not

    auto = "AutoModelForSequenceClassification" if isinstance(config, ScalarConfig) else "AutoModelForCausalLM"
    name = '"..."  # this folder, or its name on the hub'
    lines = [f"from transformers import {auto}, AutoTokenizer"]
    if is_adapter:
        lines = ["from peft import PeftModel", *lines, "", f"name = {name}"]
        more = ", num_labels=1" if isinstance(config, ScalarConfig) else ""
        packing = ASKED.get(config.model.quantization)
        if packing is not None:
            lines[1] = f"from transformers import {auto}, AutoTokenizer, BitsAndBytesConfig"
            words = ", ".join(f"{name}={value!r}" for name, value in packing.items())
            lines += [f"packing = BitsAndBytesConfig({words})".replace("'", '"')]
            more += ", quantization_config=packing"
        lines += [f'base = {auto}.from_pretrained("..."{more})  # the model that it was trained on']
        return [*lines, "model = PeftModel.from_pretrained(base, name)"]
    lines += ["", f"name = {name}", f"model = {auto}.from_pretrained(name)"]
    lines += ["tokenizer = AutoTokenizer.from_pretrained(name)"]
    if isinstance(config, ScalarConfig):
        lines += ['messages = [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]']
        lines += ['inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)']
        return [*lines, "score = model(**inputs).logits[0, 0]"]
    lines += ['messages = [{"role": "user", "content": "..."}]']
    lines += ["inputs = tokenizer.apply_chat_template("]
    lines += ['    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True', ")"]
    lines += ["reply = model.generate(**inputs, max_new_tokens=256)[0, inputs.input_ids.shape[1] :]"]
    return [*lines, "print(tokenizer.decode(reply, skip_special_tokens=True))"]


def _measured(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of the last evaluation; without one, of the last step."""
    found = evaluations(rows)
    return (found or rows or [{}])[-1]


def _numbers(row: dict[str, Any]) -> dict[str, str]:
    """Of an evaluation's row what is of held-out rows, of another all. What depends on the machine is left out."""
    numbers = {name for name, value in row.items() if isinstance(value, int | float)}
    kept = sorted(name for name in numbers if name.startswith(EVAL) or not evaluations([row]))
    apart = ("time/", STDERR, PAIRS)  # made into intervals, or of the machine
    named = [name for name in kept if not held_out(name)[1].startswith(apart) and name not in ("step", "lr")]
    return {name: value_words(row, name) for name in named}


def _settings(part: Any, prefix: str, config: TrainingConfig | None = None) -> Iterator[tuple[str, Any]]:
    whole = part if config is None else config
    for each in fields(part):
        key, value = f"{prefix}{each.name}", getattr(part, each.name)
        if key in LEFT_OUT:
            continue
        if is_dataclass(value):
            yield from _settings(value, f"{key}.", whole)
        elif isinstance(value, dict) and value and all(is_dataclass(inner) for inner in value.values()):
            for name, inner in value.items():
                yield from _settings(inner, f"{key}.{name}.", whole)
        elif value != _default(each):
            yield key, _plain(key, each, value, whole)


def _default(each: Field[Any]) -> Any:
    if each.default_factory is not MISSING:
        return each.default_factory()
    return each.default


def _plain(key: str, each: Field[Any], value: Any, config: TrainingConfig) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {name: _plain(key, each, inner, config) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(key, each, inner, config) for inner in value]
    is_path = isinstance(value, str) and ("input" in each.metadata or "place" in each.metadata)
    return _public(key, value, config) if is_path else value
