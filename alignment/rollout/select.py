"""Rejection sampling: of K replies, those that the scorer ranks first, or first and last (Llama 2, section 3.2.3)."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from alignment.config.vocabulary import Selection, Template
from alignment.data.records import Record
from alignment.rollout.samples import Samples


def select(samples: Samples, scores: Tensor, selection: Selection) -> list[dict[str, Any]]:
    """Rows of the native format: `completion` and its `score`, or `chosen` and `rejected` with both scores.

    Replies cut before their end, and empty ones, are not candidates; a prompt left with too few candidates, or with
    best and worst of equal score or text, gives no row.
    """
    rows = []
    for record, replies, row in zip(samples.records, samples.replies, scores.tolist(), strict=True):
        ranked = sorted(
            (
                (score, reply.text)
                for score, reply in zip(row, replies, strict=True)
                if reply.finished and reply.text.strip()
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
