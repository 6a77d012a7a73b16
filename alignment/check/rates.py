"""The learning rates that people train with, by method, by what is trained and by size.

Each rate is one that was published. What the names stand for, beside TRL's defaults and examples:

    CPO's paper       arXiv:2401.08417, Xu et al.'s code
    DPO's paper       arXiv:2305.18290, app. B
    KTO's paper       arXiv:2402.01306
    ORPO's paper      arXiv:2403.07691, app. C, and its code, of ORPO and of the methods beside it; its OPT models have
                      125M to 1.3B weights
    SimPO's paper     arXiv:2405.14734: what it tunes SimPO, and CPO beside it, over
    Alpaca-LoRA, LLaMA-Factory, StackLLaMA  their code (tloen, hiyouga, huggingface/trl)
    Huang et al.      arXiv:2403.17031: 1B to 6.9B
    InstructGPT       arXiv:2203.02155, app. C; it has no rate for PPO but those that were tried, of which 8.05e-6 is
                      the highest that did not diverge (app. E.9)
    Llama 2           arXiv:2307.09288, section 3; 5e-6 is its reward model of 70B
    QLoRA             arXiv:2305.14314; 1e-4 is for 33B and 65B
    Schmid            philschmid.de/dpo-align-llms-in-2024-with-trl
    SmolLM2, Zephyr   Hugging Face's alignment-handbook; Zephyr also arXiv:2310.16944, section 4
    Tulu 3            arXiv:2411.15124; the lower of two is for 70B
    Ziegler et al.    arXiv:1909.08593, section 2.2: 774M

Llama 3's DPO at 1e-5 (arXiv:2407.21783, section 4.1.4) is left out: it is ten times the others, beside a second loss.
"""

from dataclasses import dataclass

from alignment.check.verdict import Grade, Verdict
from alignment.config.online import OnlineDPOConfig, PPOConfig
from alignment.config.optimizer import RATES
from alignment.config.run import TrainingConfig
from alignment.config.supervised import (
    CPOConfig,
    DPOConfig,
    KTOConfig,
    ORPOConfig,
    RewardConfig,
    ScalarConfig,
    SFTConfig,
    SimPOConfig,
)
from alignment.config.tasks import TASKS

SMALL = 1_000_000_000  # weights; below this, rates are higher
ABOVE, BELOW = 1.5, 0.3  # times the highest and the lowest of the usual ones: what lies beyond is said
FAR_ABOVE = 5.0  # and from here on it is wrong: a pretrained model forgets what it knows in its first steps
TOY = 10_000_000  # weights; below this nobody has published any rate, so that none is known to be wrong


@dataclass(frozen=True, slots=True)
class Usual:
    """The rates that were published for a method, by whose they are; the usual ones lie between the ends."""

    published: dict[str, tuple[float, ...]]

    @property
    def low(self) -> float:
        return min(min(rates) for rates in self.published.values())

    @property
    def high(self) -> float:
        return max(max(rates) for rates in self.published.values())

    def __str__(self) -> str:
        whose = (f"{name} {' and '.join(f'{rate:g}' for rate in rates)}" for name, rates in self.published.items())
        return f"{self.low:g} to {self.high:g} ({', '.join(whose)})"


FULL: dict[type[TrainingConfig], Usual] = {
    SFTConfig: Usual({"Llama 2": (2e-5,), "Zephyr": (2e-5,), "InstructGPT": (9.65e-6,), "Tulu 3": (5e-6, 2e-6)}),
    RewardConfig: Usual({"Llama 2": (1e-5, 5e-6), "InstructGPT": (9e-6,), "Huang et al.": (3e-6,), "Tulu 3": (3e-6,)}),
    DPOConfig: Usual({"DPO's paper": (1e-6,), "Zephyr": (5e-7,), "Tulu 3": (5e-7, 2e-7)}),
    ORPOConfig: Usual({"ORPO's paper": (8e-6, 5e-6), "TRL": (1e-6,)}),
    SimPOConfig: Usual({"SimPO's paper": (1e-6, 6e-7, 5e-7, 3e-7)}),
    CPOConfig: Usual({"TRL": (8e-6, 1e-6), "SimPO's paper": (1e-6, 6e-7, 5e-7, 3e-7)}),
    KTOConfig: Usual({"TRL": (1e-6,), "KTO's paper": (5e-7,)}),
    PPOConfig: Usual(
        {
            "InstructGPT": (8.05e-6, 2.55e-6),
            "Huang et al.": (3e-6,),
            "Llama 2": (1e-6,),
            "Tulu 3": (3e-7, 1e-7),
        }
    ),
}
SMALL_FULL: dict[type[TrainingConfig], Usual] = {
    **FULL,
    SFTConfig: Usual({"SmolLM2 135M and 360M": (1e-3,), "ORPO's paper": (1e-5,)}),
    RewardConfig: Usual({"TRL": (1e-4, 1e-5)}),
    DPOConfig: Usual({"ORPO's paper": (5e-6,), "SmolLM2 135M and 360M": (1e-6,), "TRL": (1e-6, 5e-7)}),
    PPOConfig: Usual({"Ziegler et al.": (1.41e-5, 7.07e-6), "ORPO's paper": (1e-5,), "Huang et al.": (3e-6,)}),
}
LORA: dict[type[TrainingConfig], Usual] = {
    SFTConfig: Usual({"Alpaca-LoRA": (3e-4,), "QLoRA": (2e-4, 1e-4), "Zephyr": (2e-4,)}),
    RewardConfig: Usual({"TRL": (1e-4,), "StackLLaMA": (2e-5,)}),
    DPOConfig: Usual({"Schmid": (5e-5,), "Zephyr": (5e-6,), "TRL": (5e-6,)}),
    ORPOConfig: Usual({"TRL": (8e-5,), "LLaMA-Factory": (5e-6,)}),
    SimPOConfig: Usual({"LLaMA-Factory": (5e-6,)}),
    CPOConfig: Usual({"CPO's paper": (1e-4,), "TRL": (8e-5,)}),
    KTOConfig: Usual({"LLaMA-Factory": (5e-6,)}),
    PPOConfig: Usual({"StackLLaMA": (1.4e-5,), "LLaMA-Factory": (1e-5,)}),
}


def learning_rate(config: TrainingConfig, num_weights: int) -> Verdict:
    """That the learning rate is of the order that others train with; a random model has no usual one."""
    name, rate = "learning rate", config.train.learning_rate
    if config.model.path is None:
        return Verdict(name, Grade.ok, f"{rate:g} of a random model, for which there is no usual one")
    if (own := RATES.get(config.train.optimizer)) is not None:
        what = f"{rate:g} of {config.train.optimizer.value}; the published ones are of AdamW, and it takes {own}"
        return Verdict(name, Grade.ok, what)
    is_lora = config.model.lora.rank > 0
    table = LORA if is_lora else SMALL_FULL if num_weights < SMALL else FULL
    kind = RewardConfig if isinstance(config, ScalarConfig) else type(config)
    if isinstance(config, OnlineDPOConfig):
        kind = DPOConfig  # the same objective on other pairs; TRL's example has 5e-7 for both
    usual = table.get(kind)
    if usual is None:
        return Verdict(name, Grade.ok, f"{rate:g}; none that was published for this method is known here")
    method = next(name for name, root in TASKS.items() if root is kind)
    of = "under a billion" if num_weights < SMALL else "a billion or more"
    what = "with adapters" if is_lora else f"of {of} weights, all trained"
    figure = f"{rate:g}; published for {method} {what} (here the model has {num_weights:,}): {usual}"
    if BELOW * usual.low <= rate <= ABOVE * usual.high:
        return Verdict(name, Grade.ok, figure)
    grade = Grade.fail if rate >= FAR_ABOVE * usual.high and num_weights >= TOY else Grade.warn
    if rate > usual.high:
        times, nearest = f"{rate / usual.high:.3g} times the highest", usual.high
    else:
        times, nearest = f"{rate / usual.low:.1g} times the lowest", usual.low
    figure += f"; it is {times} of them"
    if num_weights < TOY and rate > usual.high:
        way = f"see that replies stay sound (alignment evaluate), or take train.learning_rate={nearest:g}"
        return Verdict(name, grade, f"{figure}; those models are far larger, and a small one often needs more: {way}")
    return Verdict(name, grade, f"{figure}: take train.learning_rate={nearest:g}")
