"""Whether the reward model's scores in the run are those of its training's layout, and whether it prefers the better
of two replies."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from alignment.check.agreement import TOLERANCE
from alignment.check.plain import plain_model, plain_score
from alignment.check.rows import raw_rows
from alignment.check.subject import shortest
from alignment.check.verdict import Grade, Verdict, graded
from alignment.config.data import (
    BadRow,
    DataConfig,
    EvalSource,
    ExampleKind,
    Format,
    SourceConfig,
    TrainSource,
    each_source,
)
from alignment.config.margin import MarginConfig
from alignment.config.model import ModelConfig
from alignment.data.load import load_split
from alignment.data.records import Record, assistant
from alignment.data.tokenize import Example
from alignment.distributed.precision import precision_of
from alignment.generation.generate import Reply
from alignment.generation.samples import Samples
from alignment.generation.score import RewardModelScorer
from alignment.models.adapters import merged_weights
from alignment.models.heads import LanguageModel, ScalarModel

READ = 600  # pairs, of which the shortest are scored
LOOKS = (64, 256)
"""How many pairs are scored, and how many where the first do not decide: an accuracy of 0.75 shows with the first
number, one of 0.6 with the second."""
Z = 2.24  # of a 95% interval that is looked at as often, 97.5% each time (Bonferroni)
BLANK = "Yes."  # stands for a reply without text


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
    prompt, whole, plain = (
        str(
            tokenizer.apply_chat_template(
                turns, tools=tools, tokenize=False, add_generation_prompt=opens, **record.template_kwargs
            )
        )
        for turns, opens in (
            (record.prompt, True),
            ([*record.prompt, *assistant(text)], False),
            ([*record.prompt, *assistant(BLANK)], False),
        )
    )
    same = next((at for at, (a, b) in enumerate(zip(prompt, plain, strict=False)) if a != b), len(prompt))
    if not whole.startswith(prompt[:same]):  # it closes what the prompt has opened
        whole = prompt + text + plain.rpartition(BLANK)[2]
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


def pairs_in(data: DataConfig, names: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """The shortest of the first pairs in the first of these splits that has any, in the order of the data; none where
    the rows are prompts or demonstrations."""
    for name in names:
        split = {"train": data.train, "eval": data.eval}[name]
        found = ((source, own) for _, source, own in each_source(split, data) if _has_pairs(source, own))
        for source, own in found:
            some = TrainSource(source.path, min(source.limit or READ, READ), source.join)
            pairs = replace(own, train=some, eval=EvalSource(), margin=MarginConfig(), on_bad_row=BadRow.skip)
            loaded = load_split("train", pairs, tokenizer, ExampleKind.pairs)
            assert loaded is not None
            kept = {id(example) for example in shortest(loaded.examples, min(LOOKS[-1], len(loaded.examples)))}
            return [example for example in loaded.examples if id(example) in kept]
    return []


def _has_pairs(source: SourceConfig, data: DataConfig) -> bool:
    if data.format is Format.toy:
        return source.limit is not None
    first = next(raw_rows(source, data), None)
    return first is not None and first.get("chosen") is not None and first.get("rejected") is not None


def prefers_chosen(
    scorer: RewardModelScorer, policy: LanguageModel | None, pairs: Sequence[Example], where: str
) -> Verdict:
    """That the reward model scores the chosen reply above the rejected one more often than not: a random head does not,
    nor does one that reads another layout than it was trained on, and one whose labels were swapped does the contrary.

    Where its body is the policy's to the bit, nothing can have been trained but its head.

    Args:
        policy: None where there is none.
        where: the key under which pairs are looked for.
    """
    pairs = [pair for pair in pairs if scorer.reader.reads(pair)]  # beyond a table of positions is an error
    name = f"{scorer.reader.key}: prefers chosen"
    untrained = policy is not None and has_body_of(scorer, policy)
    told = "; but for its head its weights are the policy's to the bit: it was never trained, or its head alone"
    pairs = [example for example in pairs if scorer.reader.reads(example)]
    if not pairs:
        figure = f"not measured, the rows hold no pairs: {where} with some, if only for this check, tells a random head"
        return Verdict(name, Grade.fail, figure + told) if untrained else Verdict(name, Grade.warn, figure)
    right: list[bool] = []
    for look in LOOKS[:1] if untrained else LOOKS:  # of that one enough is known
        table = scorer.score_examples(pairs[len(right) : look], describe="pairs")
        right += (table[:, 0] > table[:, 1]).tolist()
        low, high = interval(sum(right), len(right))
        if len(right) == len(pairs) or not low <= 0.5 <= high:
            break
    figure = f"{100 * sum(right) / len(right):.0f}% of {len(right)} pairs [{100 * low:.0f}, {100 * high:.0f}]"
    if high < 0.5:
        grade, figure = Grade.fail, f"{figure}: it prefers the rejected ones, its labels or its sign are inverted"
    elif low > 0.5:
        grade, figure = Grade.ok, f"{figure}, clear of chance"
    elif len(right) < LOOKS[-1]:
        grade, figure = Grade.warn, f"{figure}, too few to tell it from chance"
    else:
        grade, figure = (
            Grade.fail,
            f"{figure}, no better than chance: a random head, or one for other pairs",
        )
    if not untrained:
        return Verdict(name, grade, figure)
    return Verdict(name, Grade.warn if grade is Grade.ok else Grade.fail, figure + told)


def interval(right: int, count: int) -> tuple[float, float]:
    """Wilson's, of a share."""
    share, weight = right / count, Z**2 / count
    middle, half = share + weight / 2, Z * (share * (1 - share) / count + weight / (4 * count)) ** 0.5
    return (middle - half) / (1 + weight), (middle + half) / (1 + weight)


def has_body_of(scorer: RewardModelScorer, policy: LanguageModel) -> bool:
    """Whether a reward model's weights but the head's are the policy's, to the bit. Never, where it is an adapter on
    the policy's own weights."""
    assert isinstance(scorer.model, ScalarModel)
    if scorer.model.adapter is not None:
        return False
    own = scorer.model.hf.base_model.state_dict()
    others = merged_weights(policy.hf.base_model, policy.placement)
    return all(name in own and torch.equal(own[name], weight.to(own[name])) for name, weight in others)
