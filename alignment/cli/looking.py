"""The verbs that look at models and rows begin here, where torch is loaded: a user's mistake is one line."""

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from alignment.cli.evaluation import in_words_of, looked_at
from alignment.cli.parser import ending_with_reader
from alignment.config.data import ExampleKind
from alignment.config.errors import UserError
from alignment.config.evaluate import EvaluateConfig
from alignment.config.run import TrainingConfig
from alignment.process import importing
from alignment.terminal import on_stderr, say
from alignment.user_error import fail

if TYPE_CHECKING:
    from alignment.tasks.chat import Answer, Chat


VERB = "data inspect"
RECIPES = {  # whose keys say how such rows are read
    ExampleKind.prompts: "sft",
    ExampleKind.demonstrations: "sft",
    ExampleKind.pairs: "reward",
    ExampleKind.labeled: "kto",
    ExampleKind.scored: "reward_regression",
    ExampleKind.steps: "reward_process",
}


COMMANDS = "/reset begins anew, /exit ends, //word says /word to the model"
COMMAND = re.compile(r"/\w*(\s|$)")


@contextmanager
def _in_one_line(verb: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        fail(f"{verb}: {in_words_of(verb, str(error))}")


def score_file(config: EvaluateConfig, out: Path | None) -> None:
    """The rows to `out`, or to the standard output; what is said to the standard error."""
    with importing():
        from alignment.check.subject import settle
        from alignment.tasks.score import score
    with on_stderr(), _in_one_line("score"):
        settle(config)
        if out is None:
            with ending_with_reader():
                for line in score(config):
                    print(line, flush=False)
            return
        from alignment.runs.written import whole_file

        with whole_file(out) as beside, beside.open("w") as file:
            file.writelines(f"{line}\n" for line in score(config))
        say(f"written: {out}")


def chat_with(config: EvaluateConfig, system: str | None) -> None:
    """Till the user ends it. Of a pipe the replies alone are printed."""
    with importing():
        from alignment.check.subject import settle
        from alignment.tasks.chat import Chat
    with on_stderr(), _in_one_line("chat"):
        settle(config)
        chat = Chat(config, system)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # there is nothing that an interrupt could save
        is_asked = sys.stdin.isatty()
        if is_asked:
            print(COMMANDS, file=sys.stderr)
        try:
            while (line := _line(is_asked)) is not None:
                _turn(chat, line.strip())
        except KeyboardInterrupt:
            pass
        if is_asked:
            print(file=sys.stderr)


def inspect_rows(overrides: list[str]) -> None:
    """As the recipe would read them that learns of such rows; which one that is, the rows say."""
    own = any(word.startswith(("model.path=", "model=")) for word in overrides)
    model = [] if own else ["model=tiny"]
    special = ("data.margin", "data.scores", "data.step_separator", "data=graded", "data=toy_graded")
    first = [word for word in overrides if not word.startswith(special)]
    config = looked_at(VERB, RECIPES[ExampleKind.demonstrations], [*model, *first])
    with importing():
        from alignment.check.inspect import inspect, kind_of
    with ending_with_reader(), _in_one_line(VERB):
        assert isinstance(config, TrainingConfig)
        kind = kind_of(config.data)
        whole = looked_at(VERB, RECIPES[kind], [*model, *overrides])
        assert isinstance(whole, TrainingConfig)
        inspect(whole, kind, has_model=own or whole.model.tokenizer is not None)


def _line(is_asked: bool) -> str | None:
    """What the user says next; None at the end."""
    if not is_asked:
        line = sys.stdin.readline()
        return None if not line or line.strip() == "/exit" else line
    try:
        line = input("\n> ")
    except EOFError:
        return None
    return None if line.strip() == "/exit" else line


def _turn(chat: "Chat", line: str) -> None:
    """What begins with a slash is a command; one that is none is told, and the model hears nothing of it."""
    if line == "/reset":
        chat.reset()
    elif COMMAND.match(line):
        say(f"(no such command {line.split()[0]!r}: {COMMANDS})")
    elif line:
        answer = _answered(chat, line.removeprefix("/") if line.startswith("//") else line)
        if answer.note is not None:
            say(answer.note)


def _answered(chat: "Chat", line: str) -> "Answer":
    """Printed as it comes on a terminal, when it is whole elsewhere."""
    if not sys.stdout.isatty():
        answer = chat.reply(line)
        print(answer.text, flush=True)
        return answer
    try:
        return chat.reply(line, lambda piece: print(piece, end="", flush=True))
    finally:
        print(flush=True)
