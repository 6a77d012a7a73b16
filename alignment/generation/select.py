"""Rejection sampling: of K replies, those that the scorer ranks first, or first and last (Llama 2, section 3.2.3)."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from torch import Tensor

from alignment.config.data import Template
from alignment.config.online import PairSelection
from alignment.config.tasks import Selection
from alignment.data.checks import Signs, require_plain_texts
from alignment.data.records import DataError, Record, Source, assistant
from alignment.data.tokenize import Example
from alignment.generation.samples import Samples


def select(samples: Samples, scores: Tensor, selection: Selection, signs: Signs) -> list[dict[str, Any]]:
    """Rows of the native format: `completion` and its `score`, or `chosen` and `rejected` with both scores.

    Replies cut before their end, empty ones, and those that no row of data may hold are not candidates; a prompt left
    with too few candidates, or with best and worst of equal score or text, gives no row.
    """
    rows = []
    for record, replies, row in zip(samples.records, samples.replies, scores.tolist(), strict=True):
        ranked = sorted(
            (
                (score, reply.text)
                for score, reply in zip(row, replies, strict=True)
                if reply.finished and reply.text.strip() and is_plain_reply(reply.text, signs)
            ),
            key=lambda pair: -pair[0],
        )
        if not ranked:
            continue
        (best_score, best), (worst_score, worst) = ranked[0], ranked[-1]
        if selection is Selection.best:
            rows.append({**_prompt(record), "completion": best, "score": best_score})
        elif best_score > worst_score and best != worst:
            scored = {"chosen_score": best_score, "rejected_score": worst_score}
            rows.append({**_prompt(record), "chosen": best, "rejected": worst, **scored})
    return rows


def is_plain_reply(text: str, signs: Signs) -> bool:
    """Whether a reply that a model wrote can be a row of data: `require_plain_texts`, of one text."""
    record = Record([], (assistant(text),), None, Source("a reply", 1))
    try:
        require_plain_texts(record, signs)
    except DataError:
        return False
    return True


def preferences(samples: Samples, scores: Tensor, selection: PairSelection, multiple: int) -> list[Example]:
    """Pairs of a prompt's replies, in the policy's own tokens: the best against the worst, or each against all that
    score less. scores: [G, n].

    Replies that score alike, or are the same, make no pair. As many of those as it takes are added, with weight 0, to
    make the number of pairs a multiple of `multiple`, so that all processes get equally many.
    """
    pairs, ties = [], []
    for example, row in zip(samples.examples, scores.tolist(), strict=True):
        ranked = sorted(range(len(row)), key=lambda k: -row[k])
        for better, worse in combinations(ranked, 2) if selection is PairSelection.all else [(ranked[0], ranked[-1])]:
            ids = example.completion_ids[better], example.completion_ids[worse]
            ends = example.finished[better], example.finished[worse]
            pair = replace(example, completion_ids=ids, finished=ends)
            if row[better] > row[worse] and not np.array_equal(*ids):
                pairs.append(pair)
            else:
                ties.append(replace(pair, weight=0.0))
    return pairs + ties[: -len(pairs) % multiple]


def _prompt(record: Record) -> dict[str, Any]:
    """The prompt as a row of data has it: its turns, or its text where it has no template; its tools and tags, and what
    else it gives its template."""
    prompt: Any = record.prompt if record.template is Template.chat else record.prompt[0]["content"]
    more = {"tools": list(record.tools), "tags": list(record.tags), "chat_template_kwargs": record.template_kwargs}
    return {"prompt": prompt} | {name: value for name, value in more.items() if value}


def best_of(samples: Samples, scores: Tensor) -> Samples:
    """The reply of each prompt that the scorer ranks first; scores [G, n]."""
    picks = scores.argmax(1).tolist()
    examples = [
        replace(example, completion_ids=(example.completion_ids[k],), finished=(example.finished[k],))
        for example, k in zip(samples.examples, picks, strict=True)
    ]
    return Samples(samples.records, examples, [[row[k]] for row, k in zip(samples.replies, picks, strict=True)])
