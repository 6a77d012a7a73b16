"""A dialogue with a model, reply by reply: a pure function of what was said, the seed and the number of the turn."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from alignment.config.errors import UserError
from alignment.config.evaluate import EvaluateConfig
from alignment.data.chat import written
from alignment.data.loaded import Loaded
from alignment.data.records import Message, Record, Source
from alignment.data.tokenize import Truncation
from alignment.generation.generate import TransformersGenerator, end_ids
from alignment.generation.samples import build_generator
from alignment.generation.stream import Stream
from alignment.models.tokenizer import prepare_tokenizer
from alignment.tasks.compared import ComparedRun, load_policy, model_config
from alignment.terminal import say


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model has replied, and what must be said of it."""

    text: str
    note: str | None = None


class Chat:
    """What was said so far, and who answers."""

    def __init__(self, config: EvaluateConfig, system: str | None) -> None:
        """Raises:
        ConfigError: the folder holds no model that replies.
        """
        [(name, path)] = config.runs.items()
        settings = model_config(path, trusted=config.trust_remote_code)
        self.tokenizer = prepare_tokenizer(settings)
        entry = ComparedRun(settings, self.tokenizer, Loaded([], [], [], Truncation()))
        self.policy = load_policy(config, name, entry)
        self.config = config
        self.generator = build_generator(self.policy.policy, self.tokenizer, config.generation, config.distributed)
        self.limit = self.policy.policy.most_tokens()
        self.system: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self.turns: list[Message] = []
        self.number = 0  # of the user's turns, those that are forgotten too: each has draws of its own
        self._ids([*self.system, {"role": "user", "content": "?"}])  # a template without system turns says so now

    def reset(self) -> None:
        """Begin anew, the system turn kept; with the same draws as at first."""
        self.turns, self.number = [], 0

    def reply(self, text: str, show: Callable[[str], None] | None = None) -> Answer:
        """To the user's next turn. The oldest turns are forgotten where the model could not read all of them and reply
        at its longest, which is said before; of a reply that did not come to its end a note says so.

        Args:
            show: is given the reply piece by piece, as it grows.
        """
        self.turns.append({"role": "user", "content": text})
        longest = self.config.generation.max_new_tokens
        ids, forgotten = self._ids(self._all()), 0
        while self.limit is not None and len(ids) + longest > self.limit and len(self.turns) > 1:
            self.turns, forgotten = self.turns[2:], forgotten + 2
            ids = self._ids(self._all())
        if forgotten:
            say(f"(the first {forgotten} turns are forgotten: the model reads {self.limit} tokens)")
        if self.limit is not None and len(ids) + longest > self.limit:
            self.turns.pop()
            rule = (
                f"{len(ids)} tokens and a reply of up to {longest} are more than the {self.limit} that the model reads"
            )
            return Answer("", f"({rule}: say less, or lower --max-new-tokens)")
        with self.policy.engine.gathered(), self.policy.engine.precision():
            generator, stream = self.generator, None
            if show is not None and isinstance(generator, TransformersGenerator):
                ends, stop = end_ids(generator.model.hf, self.tokenizer), self.config.generation.stop
                stream = Stream(self.tokenizer, show, before=int(ids[-1]), ends=ends, stop=stop)
                generator = replace(generator, watch=stream)
            made = generator.generate([ids], keys=[self.number], replies=1, seed=self.config.seed)
        self.number += 1
        [[reply]] = made.replies
        answer = reply.text.strip()
        self.turns.append({"role": "assistant", "content": answer})
        if stream is not None:
            stream.until(answer)
        elif show is not None:
            show(answer)
        return Answer(answer, None if reply.finished else f"(cut after {longest} tokens)")

    def _all(self) -> list[Message]:
        return [*self.system, *self.turns]

    def _ids(self, turns: list[Message]) -> np.ndarray:
        record = Record(turns, (), None, Source("chat", self.number + 1))
        try:
            text = written(record, self.tokenizer, turns, add_generation_prompt=True)
        except UserError as error:
            raise UserError(f"the model's chat template refuses the dialogue: {error}") from error
        return np.array(self.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)
