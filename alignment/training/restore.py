"""Which checkpoint a run goes on from: the newest that is as it was written, on every process the same."""

import shutil
from pathlib import Path

from alignment.config.errors import ConfigError
from alignment.distributed.collectives import gathered, is_main, rank, size
from alignment.runs.folder import step_folder, steps_in
from alignment.terminal import say
from alignment.training.manifest import Damaged, Manifest, check_part, part_name, read_manifest


def newest_good(folder: Path) -> tuple[Path, Manifest] | None:
    """The newest good checkpoint in `folder`; None where there is none at all. Those skipped are said and put aside.

    Raises:
        ConfigError: there are some, and none is good.
    """
    steps = gathered(steps_in(folder))[0]
    bad: list[Path] = []
    for path in (step_folder(folder, step) for step in reversed(steps)):
        found, why = _checked(path)
        if found is not None:
            if is_main():
                for other in bad:  # out of the way, or it would count as newer than what is to come
                    _put_aside(other)
            return path, found
        if is_main():
            say(f"{path} is skipped: {why}")
        bad.append(path)
    if bad:
        rule = "checkpoint.resume=auto needs a good checkpoint (checkpoint.resume=never starts over)"
        raise ConfigError(f"{rule}, got {len(bad)} in {str(folder)!r} and none is good: {why}")
    return None


def _checked(folder: Path) -> tuple[Manifest | None, str]:
    """None where any process finds a part damaged, and what is wrong with it. Each looks at its share of the parts."""
    manifest, problem = None, ""
    try:
        manifest = read_manifest(folder)
        for number in range(rank(), manifest.world_size, size()):
            check_part(folder / part_name(number), manifest.files[part_name(number)])
    except Damaged as error:
        problem = str(error)
    problems = [each for each in gathered(problem) if each]
    return (None, problems[0]) if problems else (manifest, "")


def _put_aside(folder: Path) -> None:
    aside = folder.with_name(folder.name + ".bad")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
