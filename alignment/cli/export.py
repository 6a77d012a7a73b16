"""The verb `export`: the run's own config.yaml, which is a recipe, says what its checkpoints are of."""

from pathlib import Path

from alignment.cli.compose import composing, resolve, single
from alignment.cli.config_errors import COMPOSE_ERRORS, explain
from alignment.config.errors import UserError
from alignment.process import importing
from alignment.runs.folder import RunFolder
from alignment.user_error import fail


def export_run(folder: Path, *, step: int | None, out: Path | None) -> None:
    try:
        with composing([folder.resolve()]):
            config = resolve(single("config", []))
    except COMPOSE_ERRORS as error:
        fail(f"{RunFolder(folder).config}: {explain(error)}")

    with importing():
        from alignment.tasks.export import export

    try:
        export(config, folder, step=step, out=out)
    except UserError as error:
        fail(f"export: {error}")
