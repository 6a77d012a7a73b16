"""alignment VERB: `run`, `check`, `submit RECIPE [key=value ...] [flags]`; `status`, `logs`, `export RUN`; `recipes`.

Hydra and torch are imported by the verbs that need them only.
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from alignment import preempt
from alignment.cli.recipes import first_comment, found, may_be_recipe, own_folders, recipes, shipped
from alignment.process import belong_to_launcher, end
from alignment.runs.folder import RunFolder
from alignment.user_error import USER_ERROR, fail, nearest

USAGE = """usage: alignment VERB ...

  alignment recipes                    the recipes, one line each
  alignment run RECIPE                 run one; what it makes is in its output_dir
  alignment run RECIPE key=value ...   with other settings: alignment run tiny_dpo loss.beta=0.2 train.max_steps=50
  alignment run RECIPE --help          its presets, and every key with its value in this recipe
  alignment check RECIPE key=value ... whether that run is sound, in minutes, and nothing is written: the tokens that
                                       carry loss, ends, lengths, layout, gradients, judges; exit code 1 where not
  alignment submit RECIPE cluster=slurm key=value ...    hand it to Slurm; --dry-run shows the script
  alignment status RUN                 how far it is; RUN is an output_dir, of a sweep or a pipeline too
  alignment logs RUN                   its newest log; -f goes on, --rank N shows one process
  alignment export RUN                 a run's newest checkpoint in Hugging Face form; RUN is its output_dir
                                       (--step N: of that step; --out FOLDER: not in RUN/exported/step-N)
  alignment --version

RECIPE is the name of a shipped recipe, or the path of your own .yaml. Flags of `run`, `check` and `submit`, anywhere
behind it:

  --cfg job          print the composed config and stop; --resolve fills in its ${...}
  -m, --multirun     sweep: alignment run tiny_dpo -m loss.beta=0.1,0.2
  --config-dir DIR   look for recipes and presets in DIR before the shipped ones (`recipes` takes it too)
"""
VERBS = ("run", "check", "submit", "status", "logs", "export", "recipes")
UNREAD = 141  # 128 + SIGPIPE, as shells have it


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line."""

    def error(self, message: str) -> NoReturn:
        fail(f"{message}; `alignment --help` shows what there is")


def main() -> None:
    belong_to_launcher()
    with preempt.listening():
        try:
            dispatch(sys.argv[1:])
        except KeyboardInterrupt:
            print("alignment: interrupted", file=sys.stderr)
            end(preempt.INTERRUPTED)
        except BrokenPipeError:  # of a run, which keeps SIGPIPE ignored: what it has saved is worth more than a line
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            end(UNREAD)
        except preempt.Preempted as stop:
            if preempt.is_main():
                print(f"alignment: {' '.join(f'{stop}{preempt.requeued()}'.split())}", file=sys.stderr)
            end(preempt.exit_code())


def dispatch(arguments: list[str]) -> None:
    if not arguments:
        print(USAGE, end="", file=sys.stderr)
        sys.exit(USER_ERROR)
    verb, *rest = arguments
    if verb in ("run", "check", "submit"):
        run(verb, rest)
    elif verb == "export":
        export(rest)
    else:
        with ending_with_reader():
            show(verb, rest)


def show(verb: str, arguments: list[str]) -> None:
    """A verb that only prints."""
    if verb in ("-h", "--help"):
        print(USAGE, end="")
    elif verb == "--version":
        print(version("preference-alignment"))
    elif verb == "recipes":
        list_recipes(arguments)
    elif verb == "status":
        show_status(arguments)
    elif verb == "logs":
        show_logs(arguments)
    else:
        fail(f"no such verb {verb!r}{nearest(verb, VERBS)}; `alignment --help` lists them")


@contextmanager
def ending_with_reader() -> Iterator[None]:
    """Where all that a command does is to print: it ends without a word when nobody reads on, as in `| head`."""
    former = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        yield
        if sys.stdout is not None:  # closed by the shell, `>&-`
            sys.stdout.flush()
    finally:
        signal.signal(signal.SIGPIPE, former)


def list_recipes(arguments: list[str]) -> None:
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--help", "-h", action="store_true")
    given = parser.parse_args(arguments)
    if given.help:
        print(USAGE, end="")
        return
    files = recipes([*own_folders(given.config_dir), shipped("recipes")])
    width = max(map(len, files))
    for name in sorted(files):
        print(f"{name:<{width}}  {first_comment(files[name])}".rstrip())


def run(verb: str, arguments: list[str]) -> None:
    """`run`, `check`, `submit`: the recipe is the first word that is no flag; overrides and flags come in any order."""
    given = _run_parser(verb).parse_intermixed_args(arguments)
    if not given.words and given.help:
        print(USAGE, end="")
        return
    if not given.words or not may_be_recipe(given.words[0]):
        fail(f"{verb} needs a recipe: alignment {verb} RECIPE [key=value ...]; `alignment recipes` lists them")
    if given.resolve and given.cfg is None:
        fail("--resolve goes with --cfg")
    recipe, folders = found(given.words[0], own_folders(given.config_dir))

    from alignment.cli.check import check_recipe
    from alignment.cli.overrides import readable
    from alignment.cli.run import print_config, print_help, run_recipe
    from alignment.cli.submit import submit_recipe

    overrides = [readable(word, is_sweep=given.multirun) for word in given.words[1:]]
    if given.help:
        with ending_with_reader():
            print_help(recipe, overrides, folders)
    elif given.cfg is not None:
        with ending_with_reader():
            print_config(recipe, overrides, folders, cfg=given.cfg, resolve=given.resolve, package=given.package)
    elif verb == "run":
        run_recipe(recipe, overrides, folders, sweep=given.multirun)
    elif verb == "check":
        if given.multirun:
            fail("check takes one run, got -m")
        check_recipe(recipe, overrides, folders)
    else:
        with ending_with_reader() if given.dry_run else nullcontext():
            submit_recipe(recipe, overrides, folders, sweep=given.multirun, dry_run=given.dry_run)


def export(arguments: list[str]) -> None:
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--step", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--help", "-h", action="store_true")
    given = parser.parse_intermixed_args(arguments)
    if given.help:
        print(USAGE, end="")
        return
    if len(given.words) != 1:
        fail("export needs one run: alignment export RUN [--step N] [--out FOLDER]")
    folder = Path(given.words[0])
    if not RunFolder(folder).config.is_file():
        fail(f"export: a run's folder holds config.yaml, got {str(folder)!r}")

    from alignment.cli.run import export_run

    export_run(folder, step=given.step, out=given.out)


def show_status(arguments: list[str]) -> None:
    given = _folder_parser().parse_args(arguments)
    if given.help:
        print(USAGE, end="")
        return
    folder = _existing("status", given.folder)

    from alignment.slurm.status import print_status

    print_status(folder)


def show_logs(arguments: list[str]) -> None:
    parser = _folder_parser()
    parser.add_argument("--follow", "-f", action="store_true")
    parser.add_argument("--rank", type=int)
    given = parser.parse_args(arguments)
    if given.help:
        print(USAGE, end="")
        return
    folder = _existing("logs", given.folder)

    from alignment.slurm.logs import print_log

    print_log(folder, rank=given.rank, follow=given.follow)


def _folder_parser() -> Parser:
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--help", "-h", action="store_true")
    return parser


def _existing(verb: str, folder: str | None) -> Path:
    if folder is None:
        fail(f"{verb} needs a run's folder: alignment {verb} OUTPUT_DIR")
    if not Path(folder).is_dir():
        if Path(folder).exists():
            fail(f"{verb} needs a run's folder, got the file {folder!r}")
        near = nearest(Path(folder).name, (path.name for path in Path(folder).parent.glob("*")))
        fail(f"no such folder {folder!r}{near}")
    return Path(folder)


def _run_parser(verb: str) -> Parser:
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--help", "-h", action="store_true")
    what.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    what.add_argument("--multirun", "-m", action="store_true")
    if verb == "submit":
        parser.add_argument("--dry-run", action="store_true")
    return parser
