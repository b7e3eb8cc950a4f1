"""Writing: what is written appears whole or not at all."""

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def output_folder(path: str | Path) -> str:
    """Make a folder for results and see that files can be written there.

    Raises
    ------
    ValueError
        When the folder cannot be made or written to.
    """
    path = Path(path).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with written_whole(path / ".writable") as part:
            part.touch()
        (path / ".writable").unlink(missing_ok=True)  # another process may try at the same time
    except OSError as e:
        raise ValueError(f"{path}: cannot write results there ({e.strerror}); choose another output folder") from None
    return str(path)


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to; it is renamed to `path` on success and removed on failure."""
    path = Path(path)
    part = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def append_row(path: str | Path, row: dict[str, object]) -> None:
    """Add a row to a CSV table, which is made where there is none, with its folder.

    Raises
    ------
    ValueError
        When the table has other columns.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(csv.DictReader(path.open(newline=""))) if path.is_file() else []
    if rows and list(rows[0]) != list(row):
        raise ValueError(f"{path}: has columns {list(rows[0])}, not {list(row)}; name another table")
    with written_whole(path) as part, part.open("w", newline="") as file:
        table = csv.DictWriter(file, list(row), lineterminator="\n")
        table.writeheader()
        table.writerows([*rows, row])
