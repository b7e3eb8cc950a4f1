"""Writing: what is written appears whole or not at all."""

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
