"""The learning rates that people train with, by method, by what is trained and by size."""

from dataclasses import dataclass

from alignment.check.verdict import Verdict, graded
from alignment.config.run import TrainingConfig
from alignment.config.tasks import CPOConfig, DPOConfig, ORPOConfig, PPOConfig, RewardConfig, SFTConfig, SimPOConfig
from alignment.config.vocabulary import Grade

SMALL = 1_000_000_000  # weights; below this, rates are higher
ABOVE, BELOW = 2.0, 0.1  # times the highest and the lowest of the usual ones: what lies beyond is said


@dataclass(frozen=True, slots=True)
class Usual:
    low: float
    high: float
    source: str


FULL: dict[type[TrainingConfig], Usual] = {
    SFTConfig: Usual(5e-6, 3e-5, "Llama 2 2e-5, Zephyr 2e-5, Tulu 3 5e-6"),
    RewardConfig: Usual(3e-6, 2e-5, "Llama 2 5e-6 and 1e-5, InstructGPT 9e-6"),
    DPOConfig: Usual(2e-7, 2e-6, "DPO 1e-6, Zephyr 5e-7, Tulu 3 5e-7"),
    ORPOConfig: Usual(1e-6, 1e-5, "ORPO 8e-6, TRL 1e-6"),
    SimPOConfig: Usual(3e-7, 1e-6, "SimPO 3e-7 to 1e-6"),
    CPOConfig: Usual(3e-7, 2e-6, "SimPO's comparison 3e-7 to 1e-6, TRL 1e-6"),
    PPOConfig: Usual(5e-7, 1e-5, "Llama 2 1e-6, Huang et al. 3e-6, InstructGPT 9.65e-6"),
}
SMALL_FULL: dict[type[TrainingConfig], Usual] = {
    **FULL,
    SFTConfig: Usual(1e-5, 1e-3, "SmolLM2 135M and 360M 1e-3, 1.7B 3e-4"),
    RewardConfig: Usual(3e-6, 1e-4, "InstructGPT 9e-6, TRL 1e-4"),
}
LORA: dict[type[TrainingConfig], Usual] = {
    SFTConfig: Usual(1e-4, 3e-4, "LoRA and QLoRA 2e-4, Zephyr 2e-4"),
    RewardConfig: Usual(2e-5, 3e-4, "TRL 1e-4"),
    DPOConfig: Usual(5e-6, 5e-5, "Zephyr 5e-6, TRL 5e-6"),
    ORPOConfig: Usual(5e-6, 1e-4, "ten times those of all weights"),
    SimPOConfig: Usual(3e-6, 2e-5, "ten times those of all weights"),
    CPOConfig: Usual(1e-5, 1e-4, "CPO 1e-4"),
    PPOConfig: Usual(5e-6, 1e-4, "StackLLaMA 1.4e-5"),
}


def learning_rate(config: TrainingConfig, num_weights: int) -> Verdict:
    """That the learning rate is of the order that others train with; a random model has no usual one."""
    name, rate = "learning rate", config.train.learning_rate
    if config.model.path is None:
        return Verdict(name, Grade.ok, f"{rate:g} of a random model, for which there is no usual one")
    is_lora = config.model.lora.rank > 0
    table = LORA if is_lora else SMALL_FULL if num_weights < SMALL else FULL
    usual = table[type(config)]
    of = f"{'adapters on ' if is_lora else ''}{num_weights / 1e6:.0f} million weights"
    figure = f"{rate:g}; usual for this method and {of} are {usual.low:g} to {usual.high:g} ({usual.source})"
    return Verdict(name, graded(BELOW * usual.low <= rate <= ABOVE * usual.high, Grade.warn), figure)
