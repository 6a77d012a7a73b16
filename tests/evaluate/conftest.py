"""A made-up study with known numbers, large enough to fill every part of the report."""

from collections.abc import Callable

import numpy as np
import pytest

from alignment.evaluate.results import Evaluation, MethodResult, RewardModelResult, TrainingRun

NUM_PROMPTS = 120
WORDS = (  # noqa: SIM905
    "the trains to Leeds leave on the hour from platform four and a ticket costs twelve pounds if you book ahead "
    "however you may also take the slower coach which stops at every village along the river before it arrives"
).split()
#             gold  reward   kl  length
METHODS = {
    "sft": (0.00, 0.00, 0.0, 34),
    "dpo": (0.80, 1.30, 9.0, 41),
    "orpo": (0.45, 0.70, 6.0, 37),
    "ppo": (0.90, 2.10, 14.0, 52),
    "ppo, no KL": (-0.60, 4.20, 61.0, 88),
    "rejection sampling": (0.05, 0.40, 2.5, 35),
}


def make_method(name: str, rng: np.random.Generator, shared_noise: np.ndarray) -> MethodResult:
    gold, reward, kl, length = METHODS[name]
    lengths = rng.poisson(length, NUM_PROMPTS).clip(min=1)
    return MethodResult(
        name=name,
        gold=(gold + shared_noise + rng.normal(0, 0.5, NUM_PROMPTS)).tolist(),
        reward=(reward + 0.7 * shared_noise + rng.normal(0, 0.6, NUM_PROMPTS)).tolist(),
        kl=rng.gamma(4, kl / 4, NUM_PROMPTS).tolist() if kl else None,
        lengths=[int(number) for number in lengths],
        replies=[" ".join(rng.choice(WORDS, number)) for number in lengths],
    )


def make_preference_run(name: str, rng: np.random.Generator, num_steps: int = 600) -> TrainingRun:
    rows: list[dict] = []
    for step in range(1, num_steps + 1):
        done = step / num_steps
        rows.append(
            {
                "step": step,
                "loss": 0.69 - 0.35 * done**0.5 + rng.normal(0, 0.05),
                "lr": 5e-7 * (1 - done),
                "grad_norm": 2.0 + rng.gamma(2, 0.3),
                "rewards/accuracy": min(1.0, 0.5 + 0.3 * done**0.4 + rng.normal(0, 0.06)),
                "rewards/margin": 1.4 * done + rng.normal(0, 0.15),
                "rewards/chosen": 0.3 * done + rng.normal(0, 0.1),
                "rewards/rejected": -1.1 * done + rng.normal(0, 0.1),
                "logps/chosen": -80 - 6 * done + rng.normal(0, 4),
                "logps/rejected": -84 - 16 * done + rng.normal(0, 4),
            }
        )
        if step % 100 == 0:
            rows.append(
                {
                    "step": step,
                    "eval/loss": 0.70 - 0.30 * done**0.5,
                    "eval/rewards/accuracy": 0.5 + 0.24 * done**0.4,
                    "eval/rewards/margin": 1.2 * done,
                    "eval/rewards/chosen": 0.2 * done,
                    "eval/rewards/rejected": -1.0 * done,
                }
            )
    return TrainingRun(
        name, "dpo" if name != "reward model" else "reward", rows, f"# {name}\nloss:\n  beta: 0.1\nseed: 1\n"
    )


def make_ppo_run(name: str, rng: np.random.Generator, num_steps: int = 300) -> TrainingRun:
    rows = []
    for step in range(1, num_steps + 1):
        done = step / num_steps
        rows.append(
            {
                "step": step,
                "reward": 4.2 * done**0.6 + rng.normal(0, 0.25),
                "gold": 3.2 * done**0.6 - 3.8 * done + rng.normal(0, 0.15),
                "kl": 60 * done + rng.normal(0, 2),
                "entropy": 2.4 - 1.2 * done + rng.normal(0, 0.06),
                "length": 34 + 54 * done + rng.normal(0, 3),
                "length/reward_correlation": 0.1 + 0.5 * done + rng.normal(0, 0.05),
                "distinct_1": 0.30 - 0.20 * done,
                "distinct_2": 0.70 - 0.40 * done,
                "distinct_3": 0.90 - 0.50 * done,
                "finished": 1 - 0.2 * done,
                "policy/clip_fraction": 0.05 + rng.gamma(2, 0.01),
                "policy/approx_kl": rng.gamma(2, 0.001),
                "loss": rng.normal(-0.01, 0.005),
                "value/loss": 1.4 * (1 - done) + rng.gamma(2, 0.1),
                "grad_norm": 0.8 + rng.gamma(2, 0.1),
            }
        )
    return TrainingRun(name, "ppo", rows, "loss:\n  policy:\n    clip: 0.2\nkl_weight: 0.0\n")


def make_reward_model(rng: np.random.Generator) -> RewardModelResult:
    margins = rng.integers(0, 4, 1500)
    gap = rng.normal(0.25 + 0.9 * margins, 1.3)
    rejected = rng.normal(0, 1, 1500)
    return RewardModelResult((rejected + gap).tolist(), rejected.tolist(), [float(margin) for margin in margins])


@pytest.fixture(scope="session")
def new_study() -> Callable[[], Evaluation]:
    """Makes the study anew: equal each time."""
    return make_study


@pytest.fixture
def study() -> Evaluation:
    """Fresh for each test, which may change it."""
    return make_study()


def make_study() -> Evaluation:
    rng = np.random.default_rng(7)
    shared_noise = rng.normal(0, 1, NUM_PROMPTS)
    return Evaluation(
        prompts=[f"Question {number}: how do I get from York to Leeds by train?" for number in range(NUM_PROMPTS)],
        methods=[make_method(name, rng, shared_noise) for name in METHODS],
        baseline="sft",
        reward_model=make_reward_model(rng),
        runs=[
            make_preference_run("reward model", rng),
            make_preference_run("dpo", rng),
            make_ppo_run("ppo, no KL", rng),
        ],
        facts={"Date": "2024-05-01", "Model": "tiny-llama, 15M parameters", "Seed": "1", "torch": "2.4.0"},
    )
