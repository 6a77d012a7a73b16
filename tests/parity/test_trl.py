"""One training step is TRL's: same weights, same rows, same loss and the same gradient of every parameter.

TRL lays each completion out with its own copy of the prompt, padded; here a prompt is laid out once and the step is cut
into micro-batches. Both tokenize the rows themselves, and the ids are asserted to agree. Two things differ and are set:
ORPOTrainer and CPOTrainer put a BOS before each prompt where the tokenizer has one (the chat template here has none,
nor has ours), and TRL's likelihood is a mean over the tokens of a micro-batch, which is ours, a mean of sequence
means, when micro-batches hold one pair.
"""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from alignment.config.batch import BatchConfig, Layout
from alignment.config.data import DataConfig, ExampleKind, Format, TrainSource
from alignment.config.distributed import Device, DistributedConfig
from alignment.config.margin import MarginConfig, MarginScale
from alignment.config.model import ModelConfig
from alignment.data.batches import Batches, Packer
from alignment.data.load import load_split
from alignment.data.loaded import Loaded
from alignment.distributed.engine import TorchEngine
from alignment.distributed.placement import WHOLE
from alignment.losses import CPOLoss, DPOLoss, MarginRankingLoss, ORPOLoss, ORPONll, SimPOLoss
from alignment.models.load import load_language_model, load_scalar_model
from alignment.training.aot import dpo_objective
from alignment.training.objectives import CPO, ORPO, Objective, RewardRanking, SimPO, StepWide
from alignment.training.reference import reference_logprobs

PAIRS = 6
ON_CPU = {
    "num_train_epochs": 1,
    "max_grad_norm": 0.0,  # no clipping: the gradient itself is compared
    "learning_rate": 1e-9,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
}
ONE_PAIR = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": PAIRS}
CONFIG: dict[type, dict[str, Any]] = {
    RewardConfig: {"max_length": None, "per_device_train_batch_size": PAIRS},
    DPOConfig: {"max_length": None, "beta": 0.3, "per_device_train_batch_size": PAIRS},
    ORPOConfig: {"max_length": 512, "beta": 0.3, **ONE_PAIR},
    CPOConfig: {"max_length": 512, **ONE_PAIR},
}
DPO_VARIANTS = ("sigmoid_norm", "hinge", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "discopop")
DPO_LOSSES: dict[str, tuple[dict[str, Any], DPOLoss]] = {  # TRL's settings beside beta, and ours
    "sigmoid": ({}, DPOLoss(beta=0.3)),
    **{name: ({"loss_type": [name]}, DPOLoss(beta=0.3, variant=name)) for name in DPO_VARIANTS},  # type: ignore[arg-type]
    **{
        name: (
            {"loss_type": [name], "label_smoothing": 0.1},
            DPOLoss(beta=0.3, variant=name, label_smoothing=0.1),  # type: ignore[arg-type]
        )
        for name in ("robust", "exo_pair", "aot")
    },
    "rpo": (
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], **ONE_PAIR},
        DPOLoss(beta=0.3, rpo_alpha=0.5),
    ),
}
CPO_LOSSES: dict[str, tuple[dict[str, Any], Objective]] = {
    "cpo": ({"beta": 0.3, "cpo_alpha": 0.7}, CPO(CPOLoss(beta=0.3, cpo_alpha=0.7))),
    "cpo, smoothed": (
        {"beta": 0.3, "cpo_alpha": 1.0, "label_smoothing": 0.1},
        CPO(CPOLoss(beta=0.3, label_smoothing=0.1)),
    ),
    "slic": (
        {"beta": 0.05, "cpo_alpha": 1.0, "loss_type": "hinge"},
        CPO(CPOLoss(beta=0.05, variant="hinge")),  # type: ignore[arg-type]
    ),
    "simpo": (
        {"beta": 2.5, "cpo_alpha": 0.0, "loss_type": "simpo", "simpo_gamma": 0.8},
        SimPO(SimPOLoss(beta=2.5, gamma=0.8)),
    ),
    "cpo-simpo": (
        {"beta": 2.5, "cpo_alpha": 0.3, "loss_type": "simpo", "simpo_gamma": 0.8, "label_smoothing": 0.1},
        SimPO(SimPOLoss(beta=2.5, gamma=0.8, cpo_alpha=0.3, label_smoothing=0.1)),
    ),
}


class Gradients(TrainerCallback):
    """Keeps what the optimizer is about to see."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        assert not self.found, "one step only"
        self.found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def graded(tokenizer: PreTrainedTokenizerBase) -> Loaded:
    """A few graded pairs of the toy task."""
    split = load(tokenizer, MarginScale.large)
    assert len({example.margin for example in split.examples}) > 1
    return split


@pytest.fixture
def loaded(tokenizer: PreTrainedTokenizerBase) -> Loaded:
    """The same without their margins."""
    return load(tokenizer, MarginScale.none)


def load(tokenizer: PreTrainedTokenizerBase, margin: MarginScale) -> Loaded:
    config = DataConfig(
        format=Format.toy,
        train=TrainSource(limit=PAIRS),
        margin=MarginConfig(scale=margin),
        max_prompt_length=128,
    )
    split = load_split("train", config, tokenizer, ExampleKind.pairs)
    assert split is not None and split.truncation.prompts == split.truncation.completions == 0
    return split


def dataset(loaded: Loaded) -> Dataset:
    """The records in TRL's conversational form."""
    return Dataset.from_list(
        [
            {
                "prompt": record.prompt,
                "chosen": record.completions[0],
                "rejected": record.completions[1],
                **({} if record.margin is None else {"margin": record.margin}),
            }
            for record in loaded.records
        ]
    )


def trl_step(trainer: Any) -> tuple[float, dict[str, Tensor]]:
    gradients = Gradients()
    trainer.add_callback(gradients)
    return trainer.train().training_loss, gradients.found


def arguments(config: type, folder: Path, **settings: Any) -> Any:
    return config(output_dir=str(folder), **{**ON_CPU, **CONFIG[config], **settings})


def engine_around(model: nn.Module) -> TorchEngine:
    optimizer = torch.optim.SGD(model.parameters())
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    return TorchEngine(model, optimizer, scheduler, config=DistributedConfig(device=Device.cpu), max_grad_norm=1.0)


def our_step(model: nn.Module, objective: Objective, batches: Batches) -> tuple[float, dict[str, Tensor]]:
    """As `train_step` takes it, micro-batch by micro-batch, but for the update."""
    if isinstance(objective, StepWide):
        objective.prepare(engine_around(model), batches.once())
    pieces = batches.once().counted
    assert len(pieces) > 1 and all(piece.shared for piece in pieces)
    count, total = sum(objective.count(piece) for piece in pieces), 0.0
    for piece in pieces:
        output = objective(model, piece)
        (output.loss.total / count).backward()
        total += output.loss.total.item()
    return total / count, {n.removeprefix("hf."): p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same(ours: tuple[float, dict[str, Tensor]], theirs: tuple[float, dict[str, Tensor]]) -> None:
    """Losses, and gradients relative to the largest entry of each parameter's."""
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert ours[1].keys() == theirs[1].keys()
    for name, want in theirs[1].items():
        scale = want.abs().max()
        assert scale > 1e-4, name
        assert (ours[1][name] - want).abs().max() < 1e-5 * scale, name


def batches_of(loaded: Loaded) -> Batches:
    return Batches(loaded.examples, Packer(BatchConfig(size=PAIRS, max_tokens=200, layout=Layout.shared), 0), 0)


def build(load: Callable[..., Any], tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, seed: int) -> Any:
    torch.manual_seed(seed)
    return load(ModelConfig(init=tiny_init), tokenizer, WHOLE)


@pytest.mark.parametrize("center", [0.0, 0.1])
def test_reward_with_margins(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, graded: Loaded, tmp_path: Path, center: float
) -> None:
    model = build(load_scalar_model, tiny_init, tokenizer, seed=0)
    args = arguments(RewardConfig, tmp_path)
    args.center_rewards_coefficient = center or None
    trainer = RewardTrainer(
        model=deepcopy(model.hf), args=args, train_dataset=dataset(graded), processing_class=tokenizer
    )
    for row, example in zip(trainer.train_dataset, graded.examples, strict=True):
        prompt = example.prompt_ids.tolist()
        assert row["chosen_ids"] == prompt + example.completion_ids[0].tolist()
        assert row["rejected_ids"] == prompt + example.completion_ids[1].tolist()
        assert row["margin"] == example.margin
    ours = our_step(model, RewardRanking(MarginRankingLoss(center=center)), batches_of(graded))
    assert_same(ours, trl_step(trainer))


@pytest.mark.parametrize("name", DPO_LOSSES)
def test_dpo(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, loaded: Loaded, tmp_path: Path, name: str
) -> None:
    """With a reference of other weights, so that no log ratio is 0."""
    settings, loss = DPO_LOSSES[name]
    model = build(load_language_model, tiny_init, tokenizer, seed=0)
    reference = build(load_language_model, tiny_init, tokenizer, seed=1)
    trainer = DPOTrainer(
        model=deepcopy(model.hf),
        ref_model=deepcopy(reference.hf),
        args=arguments(DPOConfig, tmp_path, **settings),
        train_dataset=dataset(loaded),
        processing_class=tokenizer,
    )
    for row, example in zip(trainer.train_dataset, loaded.examples, strict=True):
        ids = [row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]]
        assert ids == [example.prompt_ids.tolist(), *(c.tolist() for c in example.completion_ids)]
    batches = batches_of(loaded)
    table = reference_logprobs(engine_around(reference), batches, range(PAIRS))
    assert_same(our_step(model, dpo_objective(loss, table), batches), trl_step(trainer))


def assert_same_ids(trainer: Any, loaded: Loaded) -> None:
    """Of the trainers that have no reference."""
    for row, example in zip(trainer.train_dataset, loaded.examples, strict=True):
        prompt = example.prompt_ids.tolist()
        for side, completion in zip(("chosen", "rejected"), example.completion_ids, strict=True):
            assert row[f"{side}_input_ids"] == prompt + completion.tolist()
            assert row[f"{side}_labels"] == [-100] * len(prompt) + completion.tolist()


def test_orpo(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, loaded: Loaded, tmp_path: Path) -> None:
    model = build(load_language_model, tiny_init, tokenizer, seed=0)
    without_bos = deepcopy(tokenizer)
    without_bos.bos_token = None
    trainer = ORPOTrainer(
        model=deepcopy(model.hf),
        args=arguments(ORPOConfig, tmp_path),
        train_dataset=dataset(loaded),
        processing_class=without_bos,
    )
    assert_same_ids(trainer, loaded)
    objective = ORPO(ORPOLoss(weight=0.3, nll=ORPONll.sequence))
    assert_same(our_step(model, objective, batches_of(loaded)), trl_step(trainer))


@pytest.mark.parametrize("name", CPO_LOSSES)
def test_cpo_and_simpo(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, loaded: Loaded, tmp_path: Path, name: str
) -> None:
    settings, objective = CPO_LOSSES[name]
    model = build(load_language_model, tiny_init, tokenizer, seed=0)
    without_bos = deepcopy(tokenizer)
    without_bos.bos_token = None
    trainer = CPOTrainer(
        model=deepcopy(model.hf),
        args=arguments(CPOConfig, tmp_path, **settings),
        train_dataset=dataset(loaded),
        processing_class=without_bos,
    )
    assert_same_ids(trainer, loaded)
    assert_same(our_step(model, objective, batches_of(loaded)), trl_step(trainer))
