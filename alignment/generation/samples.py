"""Prompts and what a policy replied to them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from alignment.config.data import Template
from alignment.config.distributed import DistributedConfig
from alignment.config.errors import require
from alignment.config.generation import Generation, GenerationConfig
from alignment.data.records import Message, Record
from alignment.data.tokenize import Example
from alignment.distributed.collectives import gathered, rank, size
from alignment.distributed.engine import Engine
from alignment.distributed.frozen import FrozenEngine
from alignment.generation.cache import splits
from alignment.generation.generate import Generator, Reply, TransformersGenerator
from alignment.generation.vllm import VLLMGenerator, build_vllm
from alignment.losses import Mean
from alignment.models.heads import LanguageModel


@dataclass(slots=True)
class Samples:
    """G prompts with n replies each."""

    records: list[Record]  # the prompts, with their tools and tags, as text
    examples: list[Example]  # the policy's token ids: the prompt's and those of its n replies
    replies: list[list[Reply]]  # [G][n]
    computed: int = 0  # tokens that were computed to make them, those of ended rows included; 0: not counted

    @property
    def prompts(self) -> list[list[Message]]:
        """[G], the prompts' turns."""
        return [record.prompt for record in self.records]

    def texts(self) -> list[str]:
        """[G * n], prompt by prompt."""
        return [reply.text for replies in self.replies for reply in replies]

    def repeated_prompts(self) -> list[list[Message]]:
        """[G * n], the prompt of each text."""
        return [prompt for prompt, replies in zip(self.prompts, self.replies, strict=True) for _ in replies]

    def repeated_columns(self) -> dict[str, list[Any]]:
        """name -> [G * n], what each text's prompt has of a column; None where its row lacks it, or
        has null."""
        names = dict.fromkeys(name for record in self.records for name in record.columns)
        return {
            name: [
                record.columns.get(name) for record, row in zip(self.records, self.replies, strict=True) for _ in row
            ]
            for name in names
        }

    def live_fraction(self) -> Mean:
        """The replies' tokens over those that were computed for them."""
        tokens = sum(len(reply.ids) for replies in self.replies for reply in replies)
        return Mean(torch.tensor(float(tokens)), torch.tensor(self.computed))

    def joined(self) -> "Samples":
        """Those of all processes together, on each of them, where each has replied to its `places_of` the prompts."""
        parts = gathered(self)
        total = sum(len(part.records) for part in parts)
        order = [(parts[place % len(parts)], place // len(parts)) for place in range(total)]
        return Samples(
            [part.records[at] for part, at in order],
            [part.examples[at] for part, at in order],
            [part.replies[at] for part, at in order],
            sum(part.computed for part in parts),
        )

    def first(self, count: int) -> "Samples":
        """The first prompts alone."""
        return self.at(range(count))

    def at(self, prompts: range) -> "Samples":
        """Some of the prompts, which stand one behind another."""
        some = slice(prompts.start, prompts.stop)
        return Samples(self.records[some], self.examples[some], self.replies[some])

    def with_replies(self, places: Sequence[int], other: "Samples") -> "Samples":
        """With the other's replies to its prompts, which are those at `places`."""
        examples, replies = list(self.examples), list(self.replies)
        for place, example, row in zip(places, other.examples, other.replies, strict=True):
            examples[place], replies[place] = example, row
        return Samples(self.records, examples, replies, self.computed + other.computed)

    def table(self, **columns: list[float] | None) -> list[dict[str, Any]]:
        """A row a reply: prompt, reply, length (tokens), finished, and the columns, each of G * n numbers or None."""
        replies = [reply for row in self.replies for reply in row]
        rows: list[dict[str, Any]] = [
            {"prompt": prompt, "reply": reply.text, "length": len(reply.ids), "finished": reply.finished}
            for prompt, reply in zip(self.repeated_prompts(), replies, strict=True)
        ]
        for name, column in columns.items():
            if column is not None:
                for row, value in zip(rows, column, strict=True):
                    row[name] = value
        return rows


def side_by_side(parts: Sequence[Samples]) -> Samples:
    """The replies of all parts to the same prompts, part by part."""
    examples = [
        replace(
            same[0],
            completion_ids=tuple(ids for example in same for ids in example.completion_ids),
            finished=tuple(each for example in same for each in example.finished),
        )
        for same in zip(*(part.examples for part in parts), strict=True)
    ]
    replies = [[reply for row in rows for reply in row] for rows in zip(*(part.replies for part in parts), strict=True)]
    return Samples(parts[0].records, examples, replies, sum(part.computed for part in parts))


def build_generator(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, config: GenerationConfig, distributed: DistributedConfig
) -> TransformersGenerator | VLLMGenerator:
    """Raises:
    ConfigError: vLLM is asked for, and its server is not there, or was started without what this needs; or the model
        has a soft prompt, which neither vLLM nor a compiled step reads.
    """
    rule = "generation.{} with a model that is read with a soft prompt, of which {} knows nothing"
    is_bare = model.soft_prompt() is None
    if config.engine is Generation.vllm:
        require(is_bare, rule.format("engine must be transformers", "a server"), config.engine)
        return build_vllm(model, tokenizer, config, distributed)
    if config.compile:
        require(is_bare, rule.format("compile must be false", "a compiled step"), True)
        rule = "generation.compile must be false with a model whose cache is more than keys and values"
        require(splits(model.hf), rule, model.hf.config.model_type)
    return TransformersGenerator(model, tokenizer, config)


def places_of(count: int) -> range:
    """Which of `count` prompts this process replies to."""
    return range(rank(), count, size())


def sample(
    generator: Generator,
    engine: Engine | FrozenEngine,
    records: Sequence[Record],
    examples: Sequence[Example],
    *,
    replies: int,
    seed: int,
    describe: str | None = None,
) -> Samples:
    """Reply to the prompts of `examples`; whatever completions they bring are not looked at.

    Each process replies to its share and all get all. A draw depends on the prompt's place, not on who makes it.
    `engine` has the generator's weights.
    """
    mine = places_of(len(examples))
    records, examples = [records[place] for place in mine], [examples[place] for place in mine]
    prompts = [example.prompt_ids for example in examples]
    with generator.reading(engine):
        generated = generator.generate(prompts, keys=mine, replies=replies, seed=seed, describe=describe)
    drawn = [
        [_laid_out(reply, record) for reply in row] for row, record in zip(generated.replies, records, strict=True)
    ]
    answered = [
        Example(
            prompt_ids=example.prompt_ids,
            completion_ids=tuple(reply.ids for reply in row),
            margin=None,
            source=example.source,
            finished=tuple(reply.finished for reply in row),
            tags=example.tags,
        )
        for example, row in zip(examples, drawn, strict=True)
    ]
    return Samples(records, answered, drawn, generated.computed).joined()


def _laid_out(reply: Reply, record: Record) -> Reply:
    """A turn's text without the blanks around it, which are the chat template's to set; a text that no template lays
    out is taken as it is."""
    return reply if record.template is Template.none else replace(reply, text=reply.text.strip())
