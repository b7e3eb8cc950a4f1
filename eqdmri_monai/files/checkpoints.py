"""Checkpoints of a training: written whole, and read only where a training can go on from them."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import ignite.distributed as idist
import torch
from torch import nn

from eqdmri_monai.files.weights import check_weights, read_state
from eqdmri_monai.files.writing import written_whole


def save_whole(state: Mapping[str, object], path: str | Path) -> None:
    """Save states, or weights, in place of those that were there; of several processes only the first one does.

    Raises
    ------
    ValueError
        When the file cannot be written; the one before is still there.
    """
    if idist.get_rank() > 0:
        return
    try:
        with written_whole(path) as part:
            torch.save(state, part)
    except (OSError, RuntimeError) as e:  # torch raises RuntimeError when the disk is full
        reason = getattr(e, "strerror", None) or "is the disk full?"
        raise ValueError(f"{path}: cannot be written ({reason}); make room and go on with --resume auto") from None


class HeldFolder:
    """A file that is locked until it is closed, or nobody knows of this any more, or the process ends."""

    def __init__(self, descriptor: int):
        self._descriptor: int | None = descriptor

    def close(self) -> None:
        """Give the folder free."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    __del__ = close


def hold_folder(folder: str | Path) -> HeldFolder | None:
    """Hold the folder of a training, so that no other process trains in it at the same time.

    Parameters
    ----------
    folder : path

    Returns
    -------
    HeldFolder
        None on systems and disks without locks, where nothing is held.

    Raises
    ------
    ValueError
        When another process holds it.
    """
    if os.name != "posix":
        return None
    import fcntl

    held = HeldFolder(os.open(Path(folder) / ".lock", os.O_RDWR | os.O_CREAT))
    try:  # not inherited by forks, which may outlive a killed process
        fcntl.lockf(held._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        held.close()
        if e.errno in (errno.EAGAIN, errno.EACCES):
            raise ValueError(
                f"{folder}: another process is training there; wait until it ends, or choose another --output_dir"
            ) from None
        return None
    return held


def checkpoint_to_resume(
    resume: str | Path | None, *, checkpoint: str | Path, best: str | Path, network: nn.Module, epochs: int
) -> str | None:
    """Decide whether a training begins or goes on, before it writes anything.

    Parameters
    ----------
    resume : path or "auto", optional
        None: begin; "auto": go on from `checkpoint` where there is one, else begin; else the checkpoint to go on from.
    checkpoint, best : path
        The files that the training will write; those of another training are never replaced.
    network : Module
        Whose weights the checkpoint must hold.
    epochs : int
        Of the whole training.

    Returns
    -------
    str or None
        The checkpoint to go on from.

    Raises
    ------
    FileNotFoundError
        When there is no such checkpoint.
    ValueError
        When the checkpoint is damaged, of another network, or has more epochs behind it; when the files to be written
        belong to another training.
    """
    checkpoint, best = Path(checkpoint), Path(best)
    there = next((path for path in (checkpoint, best) if path.is_file()), None)
    if resume == "auto":
        resume = checkpoint if there == checkpoint else None
    if resume is None:
        if there is not None:
            go_on = "go on with --resume auto, or " if there == checkpoint else ""
            raise ValueError(f"{there}: a training before this one wrote it; {go_on}choose another --output_dir")
        return None
    resume = Path(resume)
    if not resume.is_file():
        raise FileNotFoundError(f"{resume}: no such file; --resume auto goes on from a checkpoint if there is one")
    if there is not None and not resume.samefile(there):
        raise ValueError(f"{resume}: going on from it would replace {there}; choose another --output_dir")
    state = read_state(resume)
    if missing := sorted({"network", "optimizer", "lr_scheduler", "trainer", "best"} - state.keys()):
        raise ValueError(f"{resume}: no checkpoint of a training, {missing[0]} is missing; begin with it as --weights")
    check_weights(network, state["network"], resume)
    done = state["trainer"]["iteration"] // state["trainer"]["epoch_length"]
    if done > epochs:
        raise ValueError(f"{resume}: {done} epochs are done, more than --epochs {epochs}; ask for more")
    if idist.get_rank() == 0:
        print(f"{resume}: {done} of {epochs} epochs are done", flush=True)
    return str(resume)
