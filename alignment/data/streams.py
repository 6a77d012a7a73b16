"""The lines of a text file, as they are or compressed, each with its place."""

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, cast

from alignment.data.records import DataError, Source

ZIP = b"PK\x03\x04"
GZIP, ZSTANDARD, UTF_16 = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", (b"\xff\xfe", b"\xfe\xff")  # how files of these begin
COMPRESSED = (".gz", ".zst")


def lines(path: Path) -> Iterator[tuple[Source, str]]:
    """Each line with what ends it; a file is decompressed by what it begins with, whatever it is called.

    Raises:
        DataError: it is not UTF-8, or what is compressed is cut or damaged.
    """
    with path.open("rb") as file:
        begin = file.read(max(map(len, (ZIP, GZIP, ZSTANDARD, *UTF_16))))
    if begin.startswith(UTF_16):
        raise DataError(Source(str(path), 1), "not UTF-8: it begins as a file in UTF-16 does, save it as UTF-8")
    if begin.startswith(ZIP):
        what = "a zip archive, as sheets of .xlsx are too, and no text: save the sheet as CSV, or unpack the file"
        raise DataError(Source(str(path), 1), what)
    kind = "gzip" if path.suffix == ".gz" or begin.startswith(GZIP) else "plain"
    kind = "zstd" if path.suffix == ".zst" or begin.startswith(ZSTANDARD) else kind
    number = 0
    try:
        with OPENERS[kind](path) as file:
            for number, line in enumerate(file, start=1):
                yield Source(str(path), number), line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(Source(str(path), number), f"not UTF-8: {error}; save it as UTF-8") from error
    except BROKEN[kind] as error:
        raise DataError(Source(str(path), number + 1), f"broken {kind} data: {error}") from error


def _plain(path: Path) -> IO[bytes]:
    return path.open("rb")


def _gzip(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb"))


def _zstandard(path: Path) -> IO[bytes]:
    import pyarrow  # not above: of all that is read few files need it

    return cast(IO[bytes], io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd")))


OPENERS: dict[str, Callable[[Path], IO[bytes]]] = {"plain": _plain, "gzip": _gzip, "zstd": _zstandard}
BROKEN: dict[str, tuple[type[Exception], ...]] = {  # what reading raises of each
    "plain": (),
    "gzip": (gzip.BadGzipFile, EOFError, zlib.error),
    "zstd": (OSError,),
}
