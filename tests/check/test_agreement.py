"""Faults in mask, weights and batching, planted one by one: the verdict that is about it fails."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
)

from alignment.check import learning, subject
from alignment.check.plain import plain_model
from alignment.check.verdict import Grade
from alignment.config.adapter import settled
from alignment.config.batch import Layout
from alignment.config.data import DataConfig, TrainSource
from alignment.config.model import LoraConfig, ModelConfig, Quantization
from alignment.config.supervised import (
    CPOConfig,
    DPOConfig,
    ORPOConfig,
    RewardConfig,
    ScalarConfig,
    SFTConfig,
    SimPOConfig,
)
from alignment.config.train import Schedule, TrainConfig
from alignment.data.pack import Batch
from alignment.distributed.placement import WHOLE
from alignment.losses import DPOLoss
from alignment.models import attention, saved_adapter
from alignment.models.adapters import lora_layers
from alignment.models.branches import Sees
from alignment.models.load import load_language_model
from alignment.tasks import sft
from alignment.training import objectives, setup, step

PACKED, CUT, START, LEARNS = (
    "packed == one by one",
    "one batch == several",
    "policy == reference",
    "overfits a few rows",
)
METHODS = {
    SFTConfig: "demonstrations",
    **dict.fromkeys((RewardConfig, DPOConfig, ORPOConfig, SimPOConfig, CPOConfig), "pairs"),
}


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_a_sound_run_of_every_method_passes(kind: type, checked: Callable[..., Any]) -> None:
    verdicts = list(checked(kind, METHODS[kind]))
    names = [verdict.name for verdict in verdicts]
    assert [verdict for verdict in verdicts if verdict.grade is Grade.fail] == []
    assert len(set(names)) == len(names) and {PACKED, CUT, LEARNS, "learning rate"} <= set(names)
    assert (START in names) == (kind is DPOConfig)


def test_a_sound_run_with_adapters_and_one_of_a_random_model_pass(
    pretrained: str, tiny_init: dict[str, object], checked: Callable[..., Any]
) -> None:
    for model in (ModelConfig(path=pretrained, lora=LoraConfig(rank=2)), ModelConfig(init=tiny_init)):
        assert [each for each in checked(DPOConfig, "pairs", model=model) if each.grade is Grade.fail] == []


@pytest.fixture(scope="module")
def adapter(pretrained: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[type], str]:
    """The folder of an adapter with DoRA that is on a language model, or on a reward model with its head."""

    def make(kind: type) -> str:
        folder = tmp_path_factory.mktemp("adapter")
        torch.manual_seed(0)
        auto: Any = AutoModelForSequenceClassification if kind is RewardConfig else AutoModelForCausalLM
        labels: dict[str, Any] = {"num_labels": 1, "pad_token_id": 0} if kind is RewardConfig else {}
        task = "SEQ_CLS" if kind is RewardConfig else "CAUSAL_LM"
        own = peft.LoraConfig(r=2, use_dora=True, target_modules=["q_proj", "down_proj"], task_type=task)
        model = peft.get_peft_model(auto.from_pretrained(pretrained, **labels), own)
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data.add_(torch.randn_like(weight), alpha=0.1)
        model.save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture(scope="module")
def packed_folder(pretrained: str, tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the same model in 4 bits."""
    folder, packing = tmp_path_factory.mktemp("packed"), BitsAndBytesConfig(load_in_4bit=True)
    model: Any = AutoModelForCausalLM.from_pretrained(pretrained, quantization_config=packing)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


ON_OTHERS = [(DPOConfig, how) for how in ("nf4", "int8", "trained on", "merged", "trained on, nf4", "comes packed")]
ON_OTHERS += [(DPOConfig, "trained on, comes packed"), (DPOConfig, "dropout")]
ON_OTHERS += [(RewardConfig, how) for how in ("nf4", "trained on", "of a language model", "comes packed")]


@pytest.mark.parametrize(("kind", "how"), ON_OTHERS)
def test_a_sound_run_on_a_packed_base_or_a_saved_adapter_passes(
    kind: type,
    how: str,
    pretrained: str,
    adapter: Callable[[type], str],
    checked: Callable[..., Any],
    packed_folder: str,
) -> None:
    """It is compared with the weights that it has: those of the packing, with the adapter that it begins with."""
    if how.endswith("comes packed"):
        pretrained = packed_folder
    if how.startswith(("trained on", "of a language")):
        own = adapter(DPOConfig if "language" in how else kind)
        packed = Quantization.nf4 if "nf4" in how else Quantization.none
        given = ModelConfig(path=pretrained, adapter=own, quantization=packed)
        model = settled(
            kind(model=given, data=DataConfig(train=TrainSource("pairs.jsonl")), train=TrainConfig(max_steps=1))
        ).model
    elif how == "merged":
        model = ModelConfig(path=adapter(kind), lora=LoraConfig(rank=2))
    elif how in ("comes packed", "dropout"):
        model = ModelConfig(path=pretrained, lora=LoraConfig(rank=2, dropout=0.3 if how == "dropout" else 0.0))
    else:
        model = ModelConfig(path=pretrained, lora=LoraConfig(rank=2), quantization=Quantization(how))
    verdicts = list(checked(kind, "pairs", model=model))
    assert [verdict for verdict in verdicts if verdict.grade is Grade.fail] == []
    assert PACKED in {verdict.name for verdict in verdicts}


@pytest.mark.parametrize("packed", Quantization)
def test_an_adapter_that_is_read_otherwise_than_its_folder_has_it_is_found(
    packed: Quantization,
    pretrained: str,
    adapter: Callable[[type], str],
    verdict: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On packed weights too, whose numbers the folder has not."""
    fill = saved_adapter.fill_saved

    def stretched(hf: Any, *others: Any) -> None:
        fill(hf, *others)
        for layer in lora_layers(hf):
            layer.scaling["default"] *= 3

    given = ModelConfig(path=pretrained, adapter=adapter(DPOConfig), quantization=packed)
    data, train = DataConfig(train=TrainSource("pairs.jsonl")), TrainConfig(max_steps=1)
    model = settled(DPOConfig(model=given, data=data, train=train)).model
    assert verdict(PACKED, DPOConfig, "pairs", model=model).grade is not Grade.fail
    monkeypatch.setattr(saved_adapter, "fill_saved", stretched)
    assert verdict(PACKED, DPOConfig, "pairs", model=model).grade is Grade.fail


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        (DPOLoss(beta=0.25, variant="ipo"), "4.000000"),
        (DPOLoss(variant="hinge"), "1.000000"),
        (DPOLoss(label_smoothing=0.1, variant="robust"), "0.693147"),
        (DPOLoss(variant="sigmoid_norm", rpo_alpha=0.5), "0.693147"),
        (DPOLoss(variant="nca_pair"), "1.386294"),
        (DPOLoss(variant="exo_pair", label_smoothing=0.1), "0.510826"),
        (DPOLoss(variant="sppo_hard", beta=0.5), "2.000000"),
        (DPOLoss(variant="apo_down"), "1.000000"),
        (DPOLoss(variant="discopop"), "0.846574"),
    ],
)
def test_the_first_loss_of_each_variant_is_written_out(loss: DPOLoss, value: str, verdict: Callable[..., Any]) -> None:
    found = verdict(START, DPOConfig, "pairs", loss=loss)
    assert found.grade is Grade.ok and found.figure.count(value) == 2


@pytest.mark.parametrize("kind", [DPOConfig, RewardConfig], ids=lambda kind: kind.__name__)
def test_a_mask_that_lets_branches_see_each_other_is_found(
    kind: type, verdict: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def causal(batch: Batch, window: int | None = None) -> Sees:
        groups = batch.groups[0]
        return lambda _batch, _head, query, key: (query >= key) & (groups[query] == groups[key])

    monkeypatch.setattr(attention, "branch_rule", causal)
    monkeypatch.setattr(setup, "settle_layout", lambda model, asked: Layout.shared)  # which would decline it
    assert verdict(PACKED, kind, "pairs").grade is Grade.fail


def test_a_policy_in_another_type_than_the_folder_s_is_found(
    verdict: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = subject.load_language_model

    def half(*arguments: Any) -> Any:
        return load(*arguments).bfloat16()

    monkeypatch.setattr(subject, "load_language_model", half)
    assert verdict(PACKED, SFTConfig, "demonstrations").grade is Grade.fail


def test_a_step_that_divides_by_each_micro_batch_s_own_count_is_found(
    verdict: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful(objectives.SFT):
        def __call__(self, model: nn.Module, batch: Batch) -> Any:
            output = objectives.SFT.__call__(self, model, batch)
            return replace(output, loss=replace(output.loss, total=output.loss.total / batch.num_tokens))

    monkeypatch.setattr(sft, "SFT", Forgetful)
    assert verdict(CUT, SFTConfig, "demonstrations").grade is Grade.fail


def test_a_reference_that_is_another_model_is_found(
    verdict: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = subject.reference_logprobs

    def shifted(*arguments: Any, **named: Any) -> Tensor:
        table = reference(*arguments, **named)
        return table + torch.tensor([0.5, 0.0])

    monkeypatch.setattr(subject, "reference_logprobs", shifted)
    assert verdict(START, DPOConfig, "pairs").grade is Grade.fail


def test_a_model_that_does_not_learn_is_found(verdict: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def frozen(engine: Any, objective: Any, batches: Any) -> Any:
        for group in engine.optimizer.param_groups:
            group["lr"] = 0.0
        return step.taken_step(engine, objective, batches)

    monkeypatch.setattr(learning, "taken_step", frozen)
    assert verdict(LEARNS, SFTConfig, "demonstrations").grade is Grade.fail


def test_a_rate_for_toys_on_a_pretrained_model_is_warned_of(verdict: Callable[..., Any]) -> None:
    for kind, data in METHODS.items():  # of a toy, whose rates nobody has published
        usual = 1e-5 if issubclass(kind, (SFTConfig, ScalarConfig)) else 1.2e-6
        for rate, grade in ((3e-3, Grade.warn), (1e-9, Grade.warn), (usual, Grade.ok)):
            train = TrainConfig(max_steps=20, learning_rate=rate)
            found = verdict("learning rate", kind, data, train=train)
            assert found.grade is grade and found.figure.startswith(f"{rate:g};")


def test_nothing_is_written_beside_the_model_and_the_data(
    checked: Callable[..., Any], pretrained: str, files: dict[str, str]
) -> None:
    def state() -> list[tuple[str, int]]:
        folders = (Path(pretrained), Path(files["pairs"]).parent)
        return [(str(p), p.stat().st_mtime_ns) for folder in folders for p in sorted(folder.rglob("*"))]

    before = state()
    assert list(checked(DPOConfig, "pairs"))
    assert state() == before


def test_the_trial_steps_have_the_run_s_optimizer_and_no_schedule() -> None:
    own = TrainConfig(epochs=3, learning_rate=1e-6, warmup_ratio=0.5, weight_decay=0.1, betas=[0.8, 0.9])
    wanted = TrainConfig(
        max_steps=11, learning_rate=1e-3, schedule=Schedule.constant, weight_decay=0.1, betas=[0.8, 0.9]
    )
    assert learning.constant(own, 1e-3) == wanted


def test_what_a_grown_model_is_compared_with_has_grown_too(pretrained: str, tokenizer: PreTrainedTokenizerBase) -> None:
    settings = ModelConfig(path=pretrained, resize_embeddings=True)
    longer = deepcopy(tokenizer)
    longer.add_tokens(["<one>", "<two>"])
    model = load_language_model(settings, longer, WHOLE)
    ids = torch.tensor([[5, len(longer) - 1, 6]])
    torch.testing.assert_close(plain_model(model, settings)(ids).logits, model.hf(ids).logits)
