"""The command: `alignment VERB ...`. A verb is a module of `cli/verbs`, imported when it is asked for."""

import os
import sys
from importlib import import_module
from importlib.metadata import version
from typing import Any, TextIO

from alignment import preempt
from alignment.cli.parser import HELP, ending_with_reader
from alignment.cli.reach import within_reach
from alignment.cli.recipes import is_path, recipes, shipped
from alignment.config.errors import UserError
from alignment.process import belong_to_launcher, end
from alignment.user_error import NOT_TAKEN, USER_ERROR, fail, nearest, unwritten

VERBS = {  # in the order of `alignment --help`
    "recipes": "the recipes, one line each",
    "run": "run one, with other settings by key=value; what it makes is in its output_dir",
    "check": "whether a run would be sound, in minutes, and nothing is written",
    "plan": "whether a run fits, and on how many GPUs, before anything is loaded",
    "submit": "hand a run, a sweep or a pipeline to Slurm",
    "status": "how far a run is; of several, a table of what they differ in and what they measured",
    "compare": "runs side by side, and evaluations of the same prompts with paired intervals",
    "logs": "the log of a submitted run",
    "data": "what is in a file of rows, before anything is trained on it",
    "evaluate": "models side by side on held-out rows, a reward model on pairs",
    "score": "what a reward model gives the replies of a file",
    "chat": "talk to a model in the terminal",
    "export": "a checkpoint as a model in Hugging Face form",
    "push": "a model to the Hugging Face Hub",
}
RECIPE = ("run", "check", "plan", "submit")  # behind which --help may be asked of a recipe
UNREAD = 141  # 128 + SIGPIPE, as shells have it


def usage() -> str:
    lines = ["usage: alignment VERB ...", ""]
    lines += [f"  alignment {verb:<9} {about}" for verb, about in VERBS.items()]
    lines += ["", "  alignment VERB --help           what a verb takes, with examples"]
    lines += ["  alignment run RECIPE --help     a recipe's presets, and every key with its value and meaning"]
    lines += ["  alignment --version", "", "To begin: alignment run tiny_dpo", ""]
    return "\n".join(lines)


def main() -> None:
    belong_to_launcher()
    if sys.stdout is None:  # closed by the shell, `>&-`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115
    with preempt.listening():
        try:
            with within_reach(), preempt.unwrapped():
                _require_text(sys.argv[1:])
                dispatch(sys.argv[1:])
                sys.stdout.flush()
        except KeyboardInterrupt:
            print("alignment: interrupted", file=sys.stderr)
            end(preempt.INTERRUPTED)
        except BrokenPipeError:  # of a run, which keeps SIGPIPE ignored: what it has saved is worth more than a line
            _stop_printing()
            end(UNREAD)
        except OSError as error:
            if error.errno not in NOT_TAKEN or not _is_refused(sys.stdout):
                raise
            _stop_printing()
            fail(unwritten(error))
        except UserError as error:  # which no verb has told by its own name
            fail(str(error))
        except preempt.Preempted as stop:
            if preempt.is_main():
                print(f"alignment: {' '.join(f'{stop}{preempt.requeued()}'.split())}", file=sys.stderr)
            end(preempt.exit_code())


def _is_refused(stream: TextIO) -> bool:
    """Whether it was this that could not be written, which the system does not say: it does not take a line either."""
    try:
        print(file=stream, flush=True)
    except OSError:
        return True
    return False


def _stop_printing() -> None:
    """What is still to be printed goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _require_text(arguments: list[str]) -> None:
    """Raises:
    UserError: a word, such as the name of a file, is not UTF-8, which what a run writes of itself is.
    """
    for word in arguments:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"names of files must be UTF-8, got {word!r}: give it another name") from error


def dispatch(arguments: list[str]) -> None:
    if not arguments:
        print(usage(), end="", file=sys.stderr)
        sys.exit(USER_ERROR)
    verb, *rest = arguments
    if verb in HELP or verb == "--version":
        show(version("preference-alignment") + "\n" if verb == "--version" else usage())
        return
    if verb not in VERBS:
        is_recipe = is_path(verb) or verb in recipes([shipped("recipes")])
        hint = f" (did you mean `alignment run {verb}`?)" if is_recipe else nearest(verb, [*VERBS, "data inspect"])
        fail(f"no such verb {verb!r}{hint}; `alignment --help` lists them")
    module: Any = import_module(f"alignment.cli.verbs.{verb}")
    asks = bool(set(rest) & set(HELP))
    if asks and (verb not in RECIPE or not set(rest) - set(HELP)):
        show(module.PAGE)
        return
    module.main(rest)


def show(page: str) -> None:
    with ending_with_reader():
        print(page, end="")
