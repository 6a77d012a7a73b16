"""PPO, rejection sampling and evaluation: sound ones pass, each planted fault fails the verdict that is about it."""

from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment.check import online
from alignment.check.verdict import Verdict
from alignment.config.generation import GenerationConfig
from alignment.config.parts import BatchConfig, DataConfig, DistributedConfig, ModelConfig, SourceConfig
from alignment.config.ppo import RewardShapingConfig, ScorerConfig
from alignment.config.tasks import EvaluateConfig, PPOConfig, RejectionConfig
from alignment.config.vocabulary import Device, Grade, Need
from alignment.data.load import load_split
from alignment.data.records import replied
from alignment.distributed.placement import WHOLE
from alignment.models.heads import scalar_head
from alignment.models.load import load_language_model, load_scalar_model, save_model
from alignment.rollout import dialogue, experience

START, CUT, STOPS, LEARNS = "policy == reference", "one batch == several", "a reply stops", "learns from a few replies"
TRAINED, PREFERS = "reward.path: as in training", "reward.path: prefers chosen"
REPLIES = GenerationConfig(max_new_tokens=12, stop=["e", "a", " "])  # a random model ends no reply by itself


def separating(folder: Path, tokenizer: PreTrainedTokenizerBase, pairs: str, *, sign: float) -> None:
    """A reward model's folder, whose head points from the rejected replies to the chosen ones, times `sign`."""
    model = load_scalar_model(ModelConfig(path=str(folder)), tokenizer, WHOLE)
    data = DataConfig(train=SourceConfig(pairs))
    loaded = load_split("train", data, tokenizer, Need.pairs)
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


@pytest.fixture
def ppo(checked: Callable[..., Any], judge: Callable[[float], str]) -> Callable[..., Any]:
    """The verdicts on PPO with the reward model that prefers chosen replies; the rows are pairs."""

    def call(rows: str = "pairs", **settings: Any) -> Any:
        given: dict[str, Any] = {
            "reward": RewardShapingConfig(path=judge(1.0)),
            "generation": REPLIES,
            "batch": BatchConfig(size=8),
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


def test_a_head_that_prefers_the_rejected_replies_is_found(
    ppo: Callable[..., Any], judge: Callable[[float], str]
) -> None:
    found = named(PREFERS, ppo(reward=RewardShapingConfig(path=judge(-1.0))))
    assert found.grade is Grade.fail and found.figure.startswith("0% of 10 pairs")


def test_prompts_alone_say_nothing_of_what_is_preferred(ppo: Callable[..., Any]) -> None:
    names = [verdict.name for verdict in takewhile(lambda verdict: verdict.name != START, ppo("prompts"))]
    assert TRAINED in names and PREFERS not in names


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
    assert found.grade is Grade.fail and found.figure.startswith("0 of 8 replies ended within 4 tokens")


def test_rewards_that_are_all_alike_teach_nothing(ppo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from alignment.check import experience as learned

    monkeypatch.setattr(learned, "shaped", lambda scores, samples, config: torch.zeros_like(scores))
    monkeypatch.setattr(learned.Critic, "__call__", _flat)
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
        distributed=DistributedConfig(device=Device.cpu),
        model=ModelConfig(path=pretrained),
        data=DataConfig(train=SourceConfig(files["pairs"])),
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
        distributed=DistributedConfig(device=Device.cpu),
        runs={"base": pretrained, "new": str(tmp_path)},
        baseline="base",
        data=DataConfig(eval=SourceConfig(files["prompts"])),
        pairs=DataConfig(eval=SourceConfig(files["pairs"])),
        reward=judge(-1.0),
        generation=REPLIES,
    )
    verdicts = list(online.on_evaluation(config))
    assert [each.name for each in verdicts if each.grade is Grade.fail] == ["reward: prefers chosen"]
    assert {"base: a reply stops", "new: a reply stops", "new: packed == one by one"} <= {v.name for v in verdicts}
