"""The verb `push`."""

from pathlib import Path

from alignment.cli.parser import Parser, existing_folder
from alignment.runs.folder import RunFolder, step_folder
from alignment.user_error import fail

PAGE = """usage: alignment push RUN REPO [--private] [--branch NAME] [--message TEXT] [--step N]

Upload a model to the Hugging Face Hub, with its card. RUN is a run's output_dir, whose model/ is meant, or the folder
of a model. REPO is NAME, for one of yours, or ORG/NAME; it is made where there is none. The token is that of
`hf auth login`, or HF_TOKEN. What is there already is replaced file by file, and stays in the repository's history.

  --private        where the repository is made: for its owners alone
  --branch NAME    to that branch, not to main
  --message TEXT   of the commit
  --step N         the model of the checkpoint after N steps, which is exported first

  alignment push runs/dpo my-aligned-model --private
"""


def main(arguments: list[str]) -> None:
    parser = Parser("push")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--branch", "--revision")
    parser.add_argument("--message")
    parser.add_argument("--step", type=int)
    given = parser.parse_intermixed_args(arguments)
    if len(given.words) != 2:
        fail("push needs a run or a model's folder, and a repository: alignment push RUN REPO")
    run, repo = Path(given.words[0]), given.words[1]
    if run.is_file():
        fail(f"push needs the folder of a run or a model, got the file {str(run)!r}; `hf upload REPO FILE` takes files")
    run = existing_folder("push", given.words[0])
    folder = _model(run, given.step)

    from alignment.config.errors import UserError
    from alignment.hub.push import push

    message = given.message or "Upload a model"
    try:
        pushed = push(folder, repo, private=given.private, branch=given.branch, message=message)
        what = ", whole and as an adapter," if (folder / "adapter").is_dir() else ""
        seen = "private" if pushed.is_private else "public: everybody may read it"
        if given.private and not pushed.is_private:
            seen += ", for it was there already and stays as it was, whatever --private says"
        print(f"pushed {folder}{what} to {pushed.repo}: {pushed.url}")
        print(f"{pushed.repo} is {seen}")
    except UserError as error:
        fail(f"push: {error}")


def _model(run: Path, step: int | None) -> Path:
    """The folder that is meant."""
    files = RunFolder(run)
    if step is not None:
        if not files.config.is_file():
            fail(f"push: --step goes with a run's folder, which holds config.yaml, got {str(run)!r}")
        folder = step_folder(files.exported, step)
        if not folder.is_dir():
            from alignment.cli.export import export_run

            export_run(run, step=step, out=None)
        return folder
    if files.config.is_file() and not files.model.is_dir():
        models = [str(each.parent) for each in sorted(run.glob("*/model")) if each.is_dir()]
        ways = f"; it has models in {', '.join(models)}" if models else "; --step N takes a checkpoint's"
        fail(f"push: the run in {str(run)!r} has left no model{ways}")
    if files.config.is_file():
        return files.model
    if not any(run.glob("*.json")):
        from alignment.runs.settings import runs_in

        runs = [str(each) for each in runs_in(run) if RunFolder(each).model.is_dir()]
        if runs:
            fail(f"push: {str(run)!r} holds runs, of which one can be pushed: {', '.join(runs)}")
    return run
