"""PPO, rejection sampling and evaluation: sound ones pass, each planted fault fails the verdict that is about it."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment.check import experience as check
from alignment.check import online
from alignment.check import reward_model as judges
from alignment.check.verdict import Grade, Verdict
from alignment.config.batch import BatchConfig
from alignment.config.data import DataConfig, EvalSource, ExampleKind, TrainSource
from alignment.config.distributed import Device, DistributedConfig
from alignment.config.evaluate import EvaluateConfig
from alignment.config.generation import GenerationConfig
from alignment.config.model import ModelConfig
from alignment.config.online import OnlineDPOConfig, PPOConfig
from alignment.config.ppo import AdvantageConfig, AdvantageEstimator, KLConfig
from alignment.config.reward import RewardShapingConfig, ScorerConfig
from alignment.config.tasks import RejectionConfig
from alignment.data.load import load_split
from alignment.data.records import replied
from alignment.distributed.placement import WHOLE
from alignment.generation import dialogue
from alignment.models.heads import scalar_head
from alignment.models.load import load_language_model, load_scalar_model, save_model
from alignment.rl import experience, objectives, roles

START, CUT, STOPS, LEARNS = "policy == reference", "one batch == several", "a reply stops", "learns from a few replies"
TRAINED, PREFERS = "reward.path: as in training", "reward.path: prefers chosen"
REPLIES = GenerationConfig(max_new_tokens=12, stop=["e", "a", " "])  # a random model ends no reply by itself


def separating(folder: Path, tokenizer: PreTrainedTokenizerBase, pairs: str, *, sign: float) -> None:
    """A reward model's folder, whose head points from the rejected replies to the chosen ones, times `sign`."""
    model = load_scalar_model(ModelConfig(path=str(folder)), tokenizer, WHOLE)
    data = DataConfig(train=TrainSource(pairs))
    loaded = load_split("train", data, tokenizer, ExampleKind.pairs)
    assert loaded is not None
    with torch.no_grad():
        ends = [
            [
                model.hf.base_model(torch.tensor([[*e.prompt_ids.tolist(), *ids.tolist()]])).last_hidden_state[0, -1]
                for ids in e.completion_ids
            ]
            for e in loaded.examples
        ]
        gaps = torch.stack([chosen - rejected for chosen, rejected in ends])
        weight = torch.linalg.lstsq(gaps, torch.full((len(gaps), 1), sign)).solution
        scalar_head(model.hf).weight.copy_(weight.T)
    save_model(model, tokenizer, folder)


@pytest.fixture(scope="module")
def judge(
    pretrained: str,
    tokenizer: PreTrainedTokenizerBase,
    files: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[float], str]:
    """The folder of a reward model that prefers chosen replies (1.0) or rejected ones (-1.0)."""
    made: dict[float, str] = {}

    def of(sign: float) -> str:
        if sign not in made:
            folder = tmp_path_factory.mktemp("judge")
            save_model(load_scalar_model(ModelConfig(path=pretrained), tokenizer, WHOLE), tokenizer, folder)
            separating(folder, tokenizer, files["pairs"], sign=sign)
            made[sign] = str(folder)
        return made[sign]

    return of


@pytest.fixture(scope="module")
def stranger(tokenizer: PreTrainedTokenizerBase, tiny_init: dict[str, object], tmp_path_factory: Any) -> str:
    """The folder of a model with a head that nobody has trained, on another body than the policy's."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("stranger")
    save_model(load_scalar_model(ModelConfig(init=tiny_init), tokenizer, WHOLE), tokenizer, folder)
    return str(folder)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """300 pairs of which nothing but a throw of dice says which is the better one."""
    dice, path = random.Random(0), tmp_path_factory.mktemp("many") / "pairs.jsonl"
    words = ("cow", "dog", "owl", "runs", "eats", "sleeps", "and", "well")
    texts = [[" ".join(dice.choices(words, k=5)) for _ in range(3)] for _ in range(300)]
    rows = [{"prompt": a, "chosen": b, "rejected": c} for a, b, c in texts if b != c]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataConfig(train=TrainSource(str(path)))


@pytest.fixture
def ppo(checked: Callable[..., Any], judge: Callable[[float], str]) -> Callable[..., Any]:
    """The verdicts on PPO with the reward model that prefers chosen replies; the rows are pairs."""

    def call(rows: str = "pairs", **settings: Any) -> Any:
        given: dict[str, Any] = {
            "reward": RewardShapingConfig(path=judge(1.0)),
            "generation": REPLIES,
            "batch": BatchConfig(size=8, max_tokens=8192),
        }
        return checked(PPOConfig, rows, **{**given, **settings})

    return call


def named(name: str, verdicts: Any) -> Verdict:
    return next(verdict for verdict in verdicts if verdict.name == name)


def test_a_sound_ppo_passes(ppo: Callable[..., Any]) -> None:
    verdicts = list(ppo())
    assert [verdict for verdict in verdicts if verdict.grade is Grade.fail] == []
    names = [verdict.name for verdict in verdicts]
    assert len(set(names)) == len(names) and {START, CUT, STOPS, LEARNS, TRAINED, PREFERS} <= set(names)


def test_replies_that_score_alike_are_no_failure(ppo: Callable[..., Any]) -> None:
    """As those of an untrained model do: there is no gradient to compare, and nothing to learn."""
    grpo = AdvantageConfig(estimator=AdvantageEstimator.grpo)
    reward = RewardShapingConfig(function="tests.check.test_online.alike")
    verdicts = list(ppo(advantage=grpo, num_samples=4, reward=reward, kl=KLConfig(weight=0.0)))
    assert {name: named(name, verdicts).grade for name in (CUT, LEARNS)} == {CUT: Grade.warn, LEARNS: Grade.warn}
    assert "score alike" in named(LEARNS, verdicts).figure


def alike(prompts: list[Any], replies: list[str]) -> list[float]:
    return [0.5] * len(replies)


def test_a_sound_online_dpo_passes(checked: Callable[..., Any], judge: Callable[[float], str]) -> None:
    """Its policy and its judge, as of PPO; what PPO's roles alone can be asked is left out."""
    reward, batch = RewardShapingConfig(path=judge(1.0)), BatchConfig(size=8, max_tokens=8192)
    verdicts = list(checked(OnlineDPOConfig, "pairs", reward=reward, generation=REPLIES, batch=batch))
    assert [verdict for verdict in verdicts if verdict.grade is Grade.fail] == []
    names = [verdict.name for verdict in verdicts]
    assert len(set(names)) == len(names) and {STOPS, TRAINED, PREFERS} <= set(names) and LEARNS not in names


def test_a_head_that_prefers_the_rejected_replies_is_found(
    ppo: Callable[..., Any], judge: Callable[[float], str]
) -> None:
    found = named(PREFERS, ppo(reward=RewardShapingConfig(path=judge(-1.0))))
    assert found.grade is Grade.fail and found.figure.startswith("0% of 10 pairs")


def test_without_pairs_it_is_said_that_nothing_is_known(ppo: Callable[..., Any], stranger: str) -> None:
    found = named(PREFERS, ppo("prompts", reward=RewardShapingConfig(path=stranger)))
    assert found.grade is Grade.warn and "data.eval.path with some" in found.figure


def test_a_head_on_the_policy_s_own_body_was_never_trained(
    ppo: Callable[..., Any], judge: Callable[[float], str]
) -> None:
    """What transformers makes of a language model: even where its scores happen to be right, it is said."""
    without, right = (named(PREFERS, ppo(rows)) for rows in ("prompts", "pairs"))
    assert without.grade is Grade.fail and right.grade is Grade.warn
    assert all("the policy's to the bit" in found.figure for found in (without, right))


def test_a_random_head_is_found_where_there_are_enough_pairs(
    ppo: Callable[..., Any], stranger: str, many: DataConfig
) -> None:
    found = named(PREFERS, ppo(reward=RewardShapingConfig(path=stranger), data=many))
    assert found.grade is Grade.fail and "% of 256 pairs" in found.figure and "random head" in found.figure
    few = replace(many, train=replace(many.train, limit=40))
    found = named(PREFERS, ppo(reward=RewardShapingConfig(path=stranger), data=few))
    assert found.grade is Grade.warn and "40 pairs" in found.figure and "too few" in found.figure


@pytest.mark.parametrize(("right", "count"), [(42, 64), (22, 64), (147, 256)])
def test_the_interval_of_an_accuracy_is_wilson_s(right: int, count: int) -> None:
    """Its ends are the shares that lie Z of their own deviations from what was seen."""
    for share in judges.interval(right, count):
        assert abs(right / count - share) == pytest.approx(judges.Z * (share * (1 - share) / count) ** 0.5)


def test_a_held_out_judge_is_checked_too(ppo: Callable[..., Any], judge: Callable[[float], str]) -> None:
    found = named("gold_model: prefers chosen", ppo(gold_model=judge(-1.0)))
    assert found.grade is Grade.fail and "inverted" in found.figure


def test_a_reference_that_is_not_the_policy_is_found(ppo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    build_reference = roles.build_reference

    def another(policy: Any) -> Any:
        reference = build_reference(policy)
        with torch.no_grad():
            reference.model.hf.get_output_embeddings().weight.mul_(1.5)
        return reference

    monkeypatch.setattr(roles, "build_reference", another)
    assert named(START, ppo()).grade is Grade.fail


def test_a_reward_model_that_is_asked_in_another_layout_is_found(
    ppo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the last token of the text, where training has it read the end of the turn."""

    def endless(record: Any, texts: Any, finished: Any) -> Any:
        return replied(record, texts, [False] * len(texts))

    monkeypatch.setattr(dialogue, "replied", endless)
    assert named(TRAINED, ppo()).grade is Grade.fail


@pytest.mark.parametrize("name", ["gemma", "phi3", "zephyr", "llama2"])
def test_a_reward_model_of_another_family_is_read_in_its_own_layout(
    name: str,
    family: Callable[[str], PreTrainedTokenizerBase],
    tiny_init: dict[str, object],
    ppo: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    tokenizer, folder = family(name), tmp_path_factory.mktemp(name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    save_model(load_scalar_model(ModelConfig(init=tiny_init), tokenizer, WHOLE), tokenizer, folder)
    assert named(TRAINED, ppo(reward=RewardShapingConfig(path=str(folder)))).grade is Grade.ok


def test_experience_at_another_temperature_than_the_replies_is_found(
    ppo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = experience.token_logprobs

    def lukewarm(model: Any, batch: Any, *, temperature: float) -> Tensor:
        return read(model, batch, temperature=1.0)

    monkeypatch.setattr(experience, "token_logprobs", lukewarm)
    assert named(START, ppo(generation=replace(REPLIES, temperature=0.5))).grade is Grade.fail


def test_replies_that_never_end_are_found(ppo: Callable[..., Any]) -> None:
    found = named(STOPS, ppo(generation=GenerationConfig(max_new_tokens=4)))
    assert found.grade is Grade.fail and found.figure.startswith("0 of 8 replies to the shortest prompts ended")


def test_rewards_that_are_all_alike_teach_nothing(ppo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "shape_scores", lambda scores, samples, config: torch.zeros_like(scores))
    monkeypatch.setattr(objectives.Critic, "__call__", _flat)
    assert named(LEARNS, ppo()).grade is Grade.fail


def _flat(self: Any, model: Any, batch: Any) -> Any:
    """A value loss that does not depend on the weights."""
    from alignment.losses import LossOutput, Mean
    from alignment.models.readout import token_values

    return LossOutput(Mean.of(token_values(model, batch.batch) * 0.0 + 1.0), {})


def test_a_sound_rejection_passes(
    checked: Callable[..., Any], judge: Callable[[float], str], pretrained: str, files: dict[str, str]
) -> None:
    config = RejectionConfig(
        output_dir="run",
        batch=BatchConfig(max_tokens=8192),
        distributed=DistributedConfig(device=Device.cpu),
        model=ModelConfig(path=pretrained),
        data=DataConfig(train=TrainSource(files["pairs"])),
        reward=ScorerConfig(path=judge(1.0)),
        generation=REPLIES,
    )
    verdicts = list(online.on_rejection(config))
    assert [verdict for verdict in verdicts if verdict.grade is Grade.fail] == []
    assert {STOPS, TRAINED, PREFERS} <= {verdict.name for verdict in verdicts}


def test_a_sound_evaluation_passes_and_names_its_runs(
    judge: Callable[[float], str],
    pretrained: str,
    files: dict[str, str],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    save_model(load_language_model(ModelConfig(path=pretrained), tokenizer, WHOLE), tokenizer, tmp_path / "model")
    config = EvaluateConfig(
        output_dir="run",
        batch=BatchConfig(max_tokens=8192),
        distributed=DistributedConfig(device=Device.cpu),
        runs={"base": pretrained, "new": str(tmp_path)},
        baseline="base",
        data=DataConfig(eval=EvalSource(files["prompts"])),
        pairs=DataConfig(eval=EvalSource(files["pairs"])),
        reward=judge(-1.0),
        generation=REPLIES,
    )
    verdicts = list(online.on_evaluation(config))
    assert [each.name for each in verdicts if each.grade is Grade.fail] == ["reward: prefers chosen"]
    assert {"base: a reply stops", "new: a reply stops", "new: packed == one by one"} <= {v.name for v in verdicts}
