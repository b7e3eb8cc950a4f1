"""Writing: what is written appears whole or not at all, and what a killed process left half-written goes away.

Files that belong together are put in place together (`put_together`); what a kill leaves of that, the next
`output_folder` completes.
"""

import csv
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

PART = re.compile(r"\.(?:part|done)-(\d+)@([^@]+)")  # process, host
PLAN = ".plan.json"  # in a folder of files that belong together: what to put where
DEAD_AFTER = 24 * 3600  # s; no file takes that long to write


def output_folder(path: str | Path) -> str:
    """Make a folder for results, see that files can be written there, and clear up after killed processes: what they
    had not written whole goes away, what they had is put in place.

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
    for part in path.glob(".part-*"):
        if _is_left_over(part):
            shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)
    for done in path.glob(".done-*"):
        if _is_left_over(done):
            try:
                mine = done.rename(_done(part_of(path / "scan")))
            except FileNotFoundError:  # another process completes it
                continue
            _put_all(mine)
    return str(path)


def part_of(path: str | Path) -> Path:
    """Name a hidden file or folder beside `path`, of this process alone, to write to before it gets that name."""
    path = Path(path)
    return path.with_name(
        f".part-{os.getpid()}@{socket.gethostname()}@{path.name[-50:]}"
    )  # names have 255 bytes at most


def put_in_place(part: Path, path: Path) -> None:
    """Rename a file that is whole; a power cut after that leaves the old file or the new one."""
    _sync(part)
    os.replace(part, path)


def put_together(part: Path, targets: Mapping[Path, Path]) -> None:
    """Put files that belong together in place, in this order, and remove the folder that they were written to.

    Files that are there go just before, the last one first, so that no file ever stands beside those of another time.
    What a kill interrupts, the next `output_folder` completes.

    Parameters
    ----------
    part : Path
        A folder of that name (`part_of`), beside which the files appear, or below.
    targets : mapping
        Where each file of the folder appears.
    """
    for path in targets:
        _sync(path)
    plan = [[os.path.relpath(path, part), os.path.relpath(target, part.parent)] for path, target in targets.items()]
    (part / PLAN).write_text(json.dumps(plan))
    _sync(part / PLAN)
    done = part.rename(_done(part))
    try:
        _put_all(done)
    except OSError:  # no later run could do better
        shutil.rmtree(done, ignore_errors=True)
        raise


def _put_all(done: Path) -> None:
    """Put in place what is still in a folder of files that belong together."""
    # without a plan, all were in place, and a kill came while the folder was removed
    plan = json.loads((done / PLAN).read_text()) if (done / PLAN).is_file() else []
    plan = [(done / source, done.parent / target) for source, target in plan]
    left = [(source, target) for source, target in plan if source.is_file()]
    for _, target in reversed(left):
        target.unlink(missing_ok=True)
    for source, target in left:
        target.parent.mkdir(parents=True, exist_ok=True)
        put_in_place(source, target)
    shutil.rmtree(done, ignore_errors=True)


def _done(part: Path) -> Path:
    return part.with_name(part.name.replace(".part-", ".done-", 1))


def _sync(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to; it is renamed to `path` on success and removed on failure."""
    part = part_of(path)
    try:
        yield part
        put_in_place(part, Path(path))
    finally:
        part.unlink(missing_ok=True)


def replace_part(path: str | Path, begin: str, end: str, part: str) -> None:
    """Replace what stands between two lines of a page, such as comments; all else stays."""
    before, after = Path(path).read_text().split(f"{begin}\n")
    Path(path).write_text(f"{before}{begin}\n\n{part.strip()}\n\n{end}{after.split(end, 1)[1]}")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, numbers to the right of a first column of names; nothing where there are no rows."""
    lines = [header, ["-"] + ["-:"] * (len(header) - 1), *rows] if rows else []
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """Return the rows of a CSV table, such as `append_row` writes; none where there is no file."""
    if not Path(path).exists():
        return []
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def append_row(path: str | Path, row: dict[str, object]) -> None:
    """Add a row to a CSV table, which is made where there is none, with its folder.

    Raises
    ------
    ValueError
        When the table has other columns.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = read_rows(path)
    if rows and list(rows[0]) != list(row):
        raise ValueError(f"{path}: has columns {list(rows[0])}, not {list(row)}; name another table")
    with written_whole(path) as part, part.open("w", newline="") as file:
        table = csv.DictWriter(file, list(row), lineterminator="\n")
        table.writeheader()
        table.writerows([*rows, row])


def _is_left_over(part: Path) -> bool:
    """Return whether the process that writes a part lives no more: on this host by its number, else by age."""
    try:
        if time.time() - part.stat().st_mtime > DEAD_AFTER:
            return True
    except FileNotFoundError:  # put in place in the meantime
        return False
    found = PART.match(part.name)
    if found is None or found[2] != socket.gethostname() or os.name != "posix":  # elsewhere kill(0) is no question
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        return False
    return False
