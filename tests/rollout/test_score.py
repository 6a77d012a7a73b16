from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from alignment.config.parts import BatchConfig, ConfigError, DistributedConfig, ModelConfig
from alignment.config.tasks import ScorerConfig
from alignment.config.vocabulary import Device, Layout
from alignment.distributed.placement import WHOLE
from alignment.models.load import load_scalar_model, save_model
from alignment.rollout.function import FunctionScorer
from alignment.rollout.samples import Samples
from alignment.rollout.score import build_scorer
from alignment.world import gold

SamplesOf = Callable[[list[list[str]]], Samples]
ON_CPU = DistributedConfig(device=Device.cpu)


@pytest.fixture
def reward_folder(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(load_scalar_model(ModelConfig(init=tiny_init), tokenizer, WHOLE), tokenizer, tmp_path / "reward")
    return tmp_path / "reward"


def test_function_by_its_dotted_path(tokenizer: PreTrainedTokenizerBase) -> None:
    scorer = build_scorer(ScorerConfig(function="alignment.world.gold"), tokenizer, BatchConfig(), ON_CPU)
    assert isinstance(scorer, FunctionScorer) and scorer.function is gold


@pytest.mark.parametrize("layout", [Layout.shared, Layout.separate])
def test_reward_model_scores_each_reply_as_it_would_alone(
    reward_folder: Path, tokenizer: PreTrainedTokenizerBase, samples_of: SamplesOf, layout: Layout
) -> None:
    samples = samples_of([["a", "bb", "CCC"], ["dddd", "e", "ff"], ["g", "hhh", "iiiii"]])
    batch = BatchConfig(max_tokens=40, layout=layout)
    scorer = build_scorer(ScorerConfig(path=str(reward_folder)), tokenizer, batch, ON_CPU)
    scores = scorer.score(samples)
    plain = AutoModelForSequenceClassification.from_pretrained(reward_folder)
    with torch.no_grad():
        for row, example in enumerate(samples.examples):
            for column, ids in enumerate(example.completion_ids):
                text = torch.tensor([[*example.prompt_ids.tolist(), *ids.tolist()]])
                assert scores[row, column].item() == pytest.approx(plain(text).logits.item(), rel=1e-4, abs=1e-5)
    assert scores.shape == (3, 3) and scores.dtype == torch.float32 and not scores.requires_grad


def test_reward_model_of_another_tokenizer(reward_folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    other = AutoTokenizer.from_pretrained(reward_folder)
    other.add_tokens(["<new>"])
    with pytest.raises(ConfigError, match=r"^reward\.path must have the policy's tokenizer"):
        build_scorer(ScorerConfig(path=str(reward_folder)), other, BatchConfig(), ON_CPU)


def test_reward_model_that_is_not_there(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError, match="no tokenizer in"):
        build_scorer(ScorerConfig(path=str(tmp_path / "none")), tokenizer, BatchConfig(), ON_CPU)
