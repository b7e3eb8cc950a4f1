"""The table of many scans: one row each, of what their records measure or of what went wrong."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

from eqdmri_monai.files.writing import written_whole

COLUMNS = ("scan", "lesions", "lesion_ml", "brain_ml", "seconds", "warnings", "error")


class Summary:
    """A CSV file with a row for each scan, in the order of their names.

    Each change appears whole or not at all, and several processes may write to one file.

    Parameters
    ----------
    path : path

    Raises
    ------
    ValueError
        When there is a file of that name which is no such table.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.rows()

    def rows(self) -> dict[str, dict[str, str]]:
        """Return the rows by scan; none where there is no file yet."""
        if not self.path.is_file():
            return {}
        with self.path.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
            reader = csv.DictReader(stream)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ValueError(f"{self.path}: not a table with the columns {', '.join(COLUMNS)}; move it away")
            return {row["scan"]: row for row in reader}

    def put(self, scan: str, record: Mapping[str, object]) -> None:
        """Write the row of a scan, in place of an earlier one.

        Parameters
        ----------
        scan : str
        record : mapping
            The columns besides scan, where they are known; ``warnings`` is a list.
        """
        values = {**record, "scan": scan, "warnings": "; ".join(record.get("warnings", ()))}
        row = {column: str(values.get(column, "")) for column in COLUMNS}
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            lock.acquire()
        except NotImplementedError:  # a disk without locks; a row that two processes lose comes back with the next run
            pass
        try:
            rows = self.rows()
            if rows.get(scan) != row:
                self._write({**rows, scan: row})
        finally:
            lock.release()

    def _write(self, rows: Mapping[str, Mapping[str, str]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in sorted(rows))
        with written_whole(self.path) as part:
            part.write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape", newline="")
