"""Tables of the pages, which scripts write row by row, and tests read."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path


def put(path: Path, head: Sequence[str], name: str, cells: Iterable[str], order: Sequence[str]) -> None:
    """A row into the table of that head: in the place of the one of its name, or as a new one. Rows are in this order
    of names, and those of other names go.

    Raises:
        ValueError: the page has no such table.
    """
    page = path.read_text()
    rows = {**rows_of(page, head), name: list(cells)}
    print(line([name, *rows[name]]), flush=True)
    lines = [line(head), f"|{'---|' * len(head)}"]
    lines += [line([each, *rows[each]]) for each in order if each in rows]
    path.write_text(replaced(page, line(head), lines))


def line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def rows_of(page: str, head: Sequence[str]) -> dict[str, list[str]]:
    """The table whose head this is: first cell -> the others.

    Raises:
        ValueError: the page has none.
    """
    found = {}
    for each in table_of(page, line(head)).splitlines()[2:]:
        name, *cells = (part.strip() for part in each.strip("|").split("|"))
        found[name] = cells
    return found


def table_of(page: str, head: str) -> str:
    """The lines of the table that begins with this one.

    Raises:
        ValueError: the page has none.
    """
    found = re.search(rf"^{re.escape(head)}\n(\|.*\n)+", page, re.MULTILINE)
    if found is None:
        raise ValueError(f"no table begins with {head}")
    return found[0]


def replaced(page: str, head: str, lines: Iterable[str]) -> str:
    """The page with these lines for the table that begins with `head`.

    Raises:
        as `table_of`.
    """
    return page.replace(table_of(page, head), "".join(f"{each}\n" for each in lines))
