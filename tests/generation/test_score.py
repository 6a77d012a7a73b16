from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from alignment.config.batch import BatchConfig, Layout
from alignment.config.distributed import Device, DistributedConfig
from alignment.config.errors import ConfigError, UserError
from alignment.config.model import ModelConfig
from alignment.config.tasks import ScorerConfig
from alignment.distributed.placement import WHOLE
from alignment.generation.function import FunctionScorer
from alignment.generation.samples import Samples
from alignment.generation.score import build_scorer
from alignment.models.heads import ScalarModel
from alignment.models.load import load_scalar_model, save_model
from alignment.toy import gold

SamplesOf = Callable[[list[list[str]]], Samples]
ON_CPU = DistributedConfig(device=Device.cpu)


@pytest.fixture
def reward_folder(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(load_scalar_model(ModelConfig(init=tiny_init), tokenizer, WHOLE), tokenizer, tmp_path / "reward")
    return tmp_path / "reward"


def test_function_by_its_dotted_path() -> None:
    scorer = build_scorer(ScorerConfig(function="alignment.toy.gold"), BatchConfig(max_tokens=8192), ON_CPU)
    assert isinstance(scorer, FunctionScorer) and scorer.function is gold


@pytest.mark.parametrize("layout", [Layout.shared, Layout.separate])
def test_reward_model_scores_each_reply_as_it_would_alone(
    reward_folder: Path, tokenizer: PreTrainedTokenizerBase, samples_of: SamplesOf, layout: Layout
) -> None:
    samples = samples_of([["a", "bb", "CCC"], ["dddd", "e", "ff"], ["g", "hhh", "iiiii"]])
    batch = BatchConfig(max_tokens=40, layout=layout)
    scorer = build_scorer(ScorerConfig(path=str(reward_folder)), batch, ON_CPU)
    scores = scorer.score(samples)
    plain = AutoModelForSequenceClassification.from_pretrained(reward_folder)
    with torch.no_grad():
        for row, prompt in enumerate(samples.prompts):
            for column, reply in enumerate(samples.replies[row]):
                said = f"<|user|>{prompt[0]['content']}<|assistant|>{reply.text}" + "</s>" * reply.finished
                text = torch.tensor([tokenizer(said, add_special_tokens=False)["input_ids"]])
                assert scores[row, column].item() == pytest.approx(plain(text).logits.item(), rel=1e-4, abs=1e-5)
    assert scores.shape == (3, 3) and scores.dtype == torch.float32 and not scores.requires_grad


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_the_reward_model_s(
    reward_folder: Path, samples_of: SamplesOf, value: float
) -> None:
    """Told by its key and folder, with the reply, before anything learns from it."""
    scorer = build_scorer(ScorerConfig(path=str(reward_folder)), BatchConfig(max_tokens=8192), ON_CPU)
    samples, model = samples_of([["a", "B"], ["ccc", "d"]]), scorer.model
    assert isinstance(model, ScalarModel) and scorer.score(samples).isfinite().all()
    with torch.no_grad():
        model.hf.get_input_embeddings().weight[scorer.reader.tokenizer.convert_tokens_to_ids("B")] = value
    message = rf"^reward\.path must give finite scores, got nan of '{reward_folder}' for the reply 'B' to rows.jsonl:1 "
    with pytest.raises(UserError, match=message + r"\(1 of 4\)$"):
        scorer.score(samples)


def test_reward_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^reward\.path: .*no tokenizer in"):
        build_scorer(ScorerConfig(path=str(tmp_path / "none")), BatchConfig(max_tokens=8192), ON_CPU)
