"""What a run has left, for whoever goes on with it in the same program."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment.config.errors import UserError
from alignment.config.folders import ADAPTER_FILE, MODEL_FILE, base_of, read_json
from alignment.config.packed_base import packing_of
from alignment.config.saved_prompt import is_soft_prompt
from alignment.runs.folder import RunFolder
from alignment.runs.notes import read_note
from alignment.runs.rows import read_rows


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run."""

    folder: Path
    """Its output_dir, with everything that it has written; the config.yaml in it is the run as a recipe."""
    stages: dict[str, "Run"] = field(default_factory=dict)
    """Of a pipeline, each by its name."""

    @property
    def model(self) -> Path | None:
        """The folder of the trained model, in Hugging Face form; None of a run that trains none."""
        path = RunFolder(self.folder).model
        return path if path.is_dir() else None

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, each with its `step`; none of a run that trains nothing."""
        path = RunFolder(self.folder).metrics
        return read_rows(path) if path.exists() else []

    @property
    def summary(self) -> dict[str, Any] | None:
        """What an evaluation or a selection has found, with its intervals; None of other runs."""
        path = RunFolder(self.folder).summary
        return read_note(path) if path.exists() else None

    def load(self, **settings: Any) -> tuple[Any, Any]:
        """The trained model and its tokenizer, by transformers: `model, tokenizer = run.load(dtype="bfloat16")`.

        Args:
            settings: of `from_pretrained`, such as dtype or device_map.

        Returns:
            an AutoModelForCausalLM, or of a reward model an AutoModelForSequenceClassification; an AutoTokenizer. Of
            an adapter that was left alone, its base with the adapter on it, packed as it was in the run; of a soft
            prompt and of DoRA peft's model of both.

        Raises:
            UserError: the run has trained no model, or the base of such an adapter is not here.
        """
        if self.model is None:
            raise UserError(f"{self.folder} holds no trained model")

        from transformers import (
            AutoModelForCausalLM,
            AutoModelForSequenceClassification,
            AutoTokenizer,
            BitsAndBytesConfig,
        )

        if not (self.model / MODEL_FILE).is_file():  # an adapter alone, which transformers puts on its base
            own = read_json(self.model / ADAPTER_FILE, "model")
            is_scalar, by_peft = own.get("task_type") == "SEQ_CLS", is_soft_prompt(self.model) or own.get("use_dora")
            if (packing := packing_of(self.model, "model")) is not None:
                settings = {"quantization_config": BitsAndBytesConfig(**packing), **settings}
            settings = {**({"num_labels": 1} if is_scalar else {}), **settings}
        else:
            architectures = read_json(self.model / MODEL_FILE, "model").get("architectures") or [""]
            is_scalar, by_peft = architectures[0].endswith("ForSequenceClassification"), False
        auto: Any = AutoModelForSequenceClassification if is_scalar else AutoModelForCausalLM
        tokenizer = AutoTokenizer.from_pretrained(self.model)
        if by_peft:  # what transformers has no place for, or leaves out: DoRA's lengths
            from peft import PeftModel

            base = base_of(self.model, "model")
            if base is None:
                raise UserError(f"the base of the adapter in {self.model} must be where {ADAPTER_FILE} names it")
            return PeftModel.from_pretrained(auto.from_pretrained(base, **settings), self.model), tokenizer
        return auto.from_pretrained(self.model, **settings), tokenizer
