"""Maps of many scans, one after another: one that fails does not stop the rest, one that is finished is not done again.

MONAI's evaluator maps each scan; what is here is the loop around it.

- A scan is *finished* when its record exists, says the same of version, weights, settings and all files of the scan
  (`SaveRecordd.identity`), and all its results are there. It is skipped.
- Results that are there and belong to something else, to another scan of that name, to other weights or settings, or
  to nobody known, are never replaced unless `overwrite` says so: that scan fails, in one sentence.
- A scan that fails leaves no results behind (`SaveTogether`).
"""

import errno
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator

from eqdmri_monai.errors import first_cause, sentence
from eqdmri_monai.files.scans import PATH_KEYS
from eqdmri_monai.handlers import ScanProgress
from eqdmri_monai.report import SaveRecordd, SaveReportd, SaveTractogramd
from eqdmri_monai.report.summary import COLUMNS, Summary
from eqdmri_monai.transforms import SaveTogether

# Faults of the disk, which no further scan would be spared.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
KEEPERS = SaveReportd, SaveRecordd, SaveTractogramd  # what says of results how they were made


def map_scans(
    evaluator: SupervisedEvaluator,
    scans: Sequence[Mapping[str, str]],
    saving: SaveTogether,
    *,
    share: slice = slice(None),
    summary: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
    things: str = "scans",
) -> None:
    """Map the scans of a list, and say where the results are.

    Parameters
    ----------
    evaluator : SupervisedEvaluator
        The transform of its data set reads a scan, its postprocessing saves the results.
    scans : sequence of dict
        See `files.scans.scan_list`.
    saving : SaveTogether
        How that postprocessing saves them.
    share : slice
        Which of the scans this process maps.
    summary : path
        A table with a row for each scan, see `report.summary`; none where left out.
    overwrite : bool
        Map finished scans again, and replace results that belong to something else.
    progress : bool
        Show a bar, and say at the end where the results are.
    things : str
        What they are called.

    Raises
    ------
    ValueError
        Before the first scan is read, when two scans of the list would write the same file, or a result would replace a
        file of the list; at the end, when scans have failed in this process or in another one of its group.
    OSError
        At once, when nothing more can be written, such as on a full disk.
    """
    refuse_clashes(scans, saving)
    table = None if summary is None else Summary(summary)
    transform, mine, record = evaluator.data_loader.dataset.transform, scans[share], {}
    failed, kept, error = 0, 0, None
    with ScanProgress(evaluator, len(mine), shown=progress) as bar:
        # those that cannot even be opened first, so that the user hears of them at once
        for scan in sorted(mine, key=lambda scan: missing_file(scan) is None):
            name, start = saving.name(scan), time.monotonic()
            bar.start(name)
            if keeper(saving):
                keeper(saving).begin()
            try:
                if is_finished(scan, saving, overwrite=overwrite):
                    kept += 1
                else:
                    map_scan(evaluator, scan, transform)
                record = read_record(scan, saving)
            except Exception as e:
                error = first_cause(e)
                if isinstance(error, OSError) and error.errno in FULL:
                    raise OSError(error.errno, error.strerror, str(saving.folder)) from None
                failed += 1
                record = {"error": sentence(e), "seconds": round(time.monotonic() - start, 1)}
                if len(scans) > 1:
                    bar.say(f"error: {name}: {record['error']}")
            if table:
                table.put(name, record)
    total, failed, kept = idist.all_reduce(torch.tensor([len(mine), failed, kept])).tolist()
    if error and len(scans) == 1:
        raise error
    if progress:
        what = f"{total - failed} of {total} {things} have their results" + (f", {kept} of them before" if kept else "")
        if len(scans) == 1:
            what = f"{name}: " + (", ".join(f"{key} {record[key]}" for key in COLUMNS[1:4] if key in record) or "done")
        print(f"{what}; results are in {saving.folder}")
    if failed:
        raise ValueError(f"{failed} of {total} {things} failed; see {summary or 'above'}")


def map_scan(evaluator: SupervisedEvaluator, scan: Mapping[str, str], transform: Callable) -> None:
    """Map one scan; what is raised on the way is raised here, and the evaluator can map another one after that."""
    faults = []

    def keep(engine: Engine, error: BaseException) -> None:
        # An error that leaves `Engine.run` makes its next run end at once, without a word (ignite 0.5.5).
        if not isinstance(error, Exception):
            raise error
        faults.append(error)

    evaluator.data_loader = DataLoader(Dataset([scan], transform), batch_size=1, num_workers=0)
    evaluator.state.epoch_length = 1
    with evaluator.add_event_handler(Events.EXCEPTION_RAISED, keep):
        evaluator.run()
    evaluator.state.batch = evaluator.state.output = None  # memory for the next one
    if faults:
        raise faults[0]


def is_finished(scan: Mapping[str, str], saving: SaveTogether, *, overwrite: bool) -> bool:
    """Whether a scan needs no mapping.

    Raises
    ------
    ValueError
        When what is there belongs to something else, and `overwrite` is False; or names become too long.
    """
    files = saving.outputs(scan)
    try:
        there = [path for path in files if path.exists()]
    except OSError as e:
        raise ValueError(
            f"{scan['image']}: no files can have the names of its results ({e.strerror}); shorten its name"
        ) from None
    if overwrite or not there:
        return False
    hint = "choose another output folder, or --overwrite True"
    record = read_record(scan, saving)
    if not record and not any(path.exists() for path in files):
        return False  # another process is replacing them
    if not record:
        raise ValueError(f"{there[0]}: is there already, and no record says of what; {hint}")
    identity = json.loads(json.dumps(keeper(saving).identity(scan)))
    hashes = {key for key in record if key.endswith("_sha256")}
    others = sorted(key for key in identity.keys() | hashes if record.get(key) != identity.get(key))
    if others:
        names = " and ".join(key.removesuffix("_sha256") for key in others)
        raise ValueError(f"{there[0]}: is there already, made with another {names}; {hint}")
    return len(there) == len(files)


def read_record(scan: Mapping[str, str], saving: SaveTogether) -> dict[str, object]:
    """Return the record beside the results of a scan; empty where there is none."""
    if keeper(saving) is None:
        return {}
    path = saving.target(keeper(saving).outputs(scan)[0])
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as e:
        raise ValueError(f"{path}: is no record ({e}); remove it, or --overwrite True") from None
    return record if isinstance(record, dict) else {}


def keeper(saving: SaveTogether) -> SaveReportd | SaveRecordd | SaveTractogramd | None:
    """Return what keeps the records of scans; None where they have none, and are never finished."""
    return next((save for save in saving.transforms if isinstance(save, KEEPERS)), None)


def missing_file(scan: Mapping[str, str]) -> str | None:
    """Return the first file of a scan that does not exist."""
    return next((scan[key] for key in PATH_KEYS if key in scan and not Path(scan[key]).is_file()), None)


def refuse_clashes(scans: Sequence[Mapping[str, str]], saving: SaveTogether) -> None:
    """Refuse a list in which two scans would write the same file, or a result would replace a file of the list.

    Raises
    ------
    ValueError
    """
    given = {os.path.realpath(scan[key]) for scan in scans for key in PATH_KEYS if key in scan}
    taken: dict[str, str] = {}
    for scan in scans:
        for path in saving.outputs(scan):
            real, image = os.path.realpath(path), scan["image"]
            if real in given:
                raise ValueError(f"{path}: the result of {image} would replace this file; choose another output folder")
            if real in taken:
                other = taken[real]
                both = f"{image} stands twice in the list" if other == image else f"{other} and {image}"
                fix = "take one out" if other == image else "give them different names or folders"
                raise ValueError(f"{both}, and both would be mapped to {path}; {fix}")
            taken[real] = image
