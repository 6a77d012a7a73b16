"""Whether the reward model says of a reply what it was trained to say, and whether it knows the better one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from alignment.check.agreement import TOLERANCE
from alignment.check.plain import plain_model, plain_score
from alignment.check.rows import raw_rows
from alignment.check.verdict import Verdict, graded, worst
from alignment.config.parts import DataConfig, ModelConfig, SourceConfig
from alignment.config.vocabulary import Format, Grade, Need
from alignment.data.load import Loaded, load_split
from alignment.data.records import Record, assistant
from alignment.distributed.precision import precision_of
from alignment.models.heads import ScalarModel
from alignment.rollout.generate import Reply
from alignment.rollout.samples import Samples
from alignment.rollout.score import RewardModelScorer

PAIRS = 64
BLANK = "Yes."  # stands for a reply without text
Z = 1.96  # of a 95% interval


def as_trained(scorer: RewardModelScorer, samples: Samples, key: str) -> Verdict:
    """That a reply's score in the run is the reward model's of the same dialogue in its own template and tokens, with
    the end that it was trained on, read by transformers alone.

    `samples`: one reply each, all of them with their end.
    """
    assert isinstance(scorer.model, ScalarModel)
    plain, tokenizer = plain_model(scorer.model, ModelConfig(path=scorer.path)), scorer.reader.tokenizer
    ours = scorer.score(samples)[:, 0].double()
    layouts = [
        trained_ids(record, reply.text, tokenizer)
        for record, [reply] in zip(samples.records, samples.replies, strict=True)
    ]
    theirs = torch.tensor([plain_score(plain, ids[:1], ids[1:]) for ids in layouts]).double()
    difference = (ours - theirs).abs()
    tolerance = TOLERANCE[precision_of(scorer.distributed)] * max(1.0, float(theirs.abs().mean()))
    last = int(difference.argmax())
    figure = (
        f"{len(ours)} replies: at most {difference.max():.1e} from the score of the dialogue as it is trained "
        f"({ours[last]:.3f} here, {theirs[last]:.3f} there, at most {tolerance:.0e})"
    )
    return Verdict(f"{key}: as in training", graded(bool(difference.max() < tolerance)), figure)


def trained_ids(record: Record, text: str, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """The tokens of a dialogue that ends with this reply, up to the end of text: written out here, without `encode`."""
    tools: Any = list(record.tools) or None
    prompt, whole = (
        str(tokenizer.apply_chat_template(turns, tools=tools, tokenize=False, add_generation_prompt=opens))
        for turns, opens in ((record.prompt, True), ([*record.prompt, *assistant(text)], False))
    )
    begin = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    ids, eos = tokenizer(whole, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id
    reply = ids[begin:]
    return np.array([*ids[:begin], *(reply[: reply.index(eos) + 1] if eos in reply else [*reply, eos])])


def with_ends(samples: Samples, tokenizer: PreTrainedTokenizerBase) -> Samples:
    """The first reply to each prompt, with the end that it may lack."""
    replies = [[_ended(row[0], tokenizer)] for row in samples.replies]
    examples = [
        replace(example, completion_ids=(reply.ids,), finished=(True,), learned=None)
        for example, [reply] in zip(samples.examples, replies, strict=True)
    ]
    return Samples(samples.records, examples, replies)


def _ended(reply: Reply, tokenizer: PreTrainedTokenizerBase) -> Reply:
    if reply.finished and reply.text:
        return reply
    text = reply.text or BLANK
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return Reply(np.array(ids, dtype=np.int32), True, text)


def pairs_in(data: DataConfig, names: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Loaded | None:
    """Some pairs of the first of these splits that has any; None where the rows are prompts or demonstrations."""
    for name in names:
        source = {"train": data.train, "eval": data.eval}[name]
        if _has_pairs(source, data.format):
            few = replace(source, limit=min(source.limit or PAIRS, PAIRS))
            return load_split("train", replace(data, train=few), tokenizer, Need.pairs)
    return None


def _has_pairs(source: SourceConfig, format: Format) -> bool:
    if format is Format.world:
        return source.limit is not None
    first = next(raw_rows(source, format), None)
    return first is not None and first.get("chosen") is not None and first.get("rejected") is not None


def prefers_chosen(scorer: RewardModelScorer, pairs: Loaded, key: str) -> Verdict:
    """That the reward model scores the chosen reply above the rejected one more often than not: a random head does not,
    nor does one that reads another layout than it was trained on."""
    examples = [example for example in pairs.examples if scorer.reader.reads(example)]
    if not examples:
        figure = f"all {len(pairs.examples)} pairs are longer than the {scorer.reader.limit} tokens that it reads"
        return Verdict(f"{key}: prefers chosen", Grade.fail, figure)
    scores = scorer.score_examples(examples)
    right = (scores[:, 0] > scores[:, 1]).double()
    accuracy, half = float(right.mean()), Z * 0.5 / len(right) ** 0.5
    figure = f"{100 * accuracy:.0f}% of {len(right)} pairs ({100 * (0.5 + half):.0f}% is clear of chance)"
    figure += f", scores {scores.mean():.2f} with a deviation of {scores.std():.2f}"
    grades = [graded(accuracy > 0.5), graded(accuracy > 0.5 + half, Grade.warn)]
    return Verdict(f"{key}: prefers chosen", worst(grades), figure)
