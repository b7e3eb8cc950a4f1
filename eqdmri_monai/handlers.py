"""Ignite handlers: training that can be stopped and resumed, in one process or in several, and what a run shows."""

import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import ClassVar

import ignite.distributed as idist
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.utils import set_determinism
from torch import nn
from tqdm import tqdm

from eqdmri_monai.files.checkpoints import save_whole


class SeedEpochs:
    """Seed everything random at the start of each epoch by ``seed + epoch``, and otherwise in each process.

    An epoch then sees the same crops in the same order whether or not the run was stopped before it.

    Parameters
    ----------
    seed : int
    """

    BETWEEN_PROCESSES = 1_000_003  # more than there are epochs

    def __init__(self, seed: int):
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, before every handler that draws random numbers."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed torch, numpy, random and the random transforms of the data set."""
        seed = self.seed + engine.state.epoch + self.BETWEEN_PROCESSES * idist.get_rank()
        set_determinism(seed=seed)
        engine.data_loader.dataset.transform.set_random_state(seed=seed)


class OwnEpochLength:
    """Keep a run's own number of steps in an epoch when it goes on from a checkpoint that had another.

    A checkpoint of one process can so be taken up by several, and the other way round.
    """

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after the handler that loads the checkpoint."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Count the epochs that are done in steps of this run."""
        state, length = engine.state, len(engine.data_loader)
        if state.epoch_length != length:
            state.epoch_length, state.iteration = length, state.epoch * length


class SaveCheckpoint:
    """Save all that a run needs to go on, in one file: when it starts, after every so many epochs, and at its end.

    The file is replaced by the next one once that is whole, and never by weights that are not finite. It holds whole
    epochs: where a run ends within one, what is saved is the end of the one before.

    (ignite's `Checkpoint` removes a file before it writes the next one of the same name.)

    Parameters
    ----------
    path : path
    objects : mapping
        What has a ``state_dict``, by name; "network" is one of them.
    interval : int
        Epochs between saves.
    """

    def __init__(self, path: str | Path, objects: Mapping[str, object], *, interval: int = 1):
        self.path, self.objects, self.interval = Path(path), objects, interval
        self.epoch: int | None = None  # of what was saved last

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after what loads a checkpoint, validates, or changes the learning rate."""
        engine.add_event_handler(Events.STARTED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save, unless that is done or the run is within an epoch.

        Raises
        ------
        ValueError
            When weights are not finite, or the file cannot be written.
        """
        state = engine.state
        if state.epoch == self.epoch or state.iteration != state.epoch * state.epoch_length:
            return
        if not all(value.isfinite().all() for value in self.objects["network"].state_dict().values()):
            raise ValueError(
                f"epoch {state.epoch}: the weights are not finite any more, so {self.path} stays as it was; lower "
                "--learning_rate"
            )
        save_whole({name: thing.state_dict() for name, thing in self.objects.items()}, self.path)
        self.epoch = state.epoch


class SaveBest:
    """Save the weights when a validation's key metric is better than all before, those before a resume among them.

    Parameters
    ----------
    path : path
        The file is replaced by the next one once that is whole.
    network : Module
    minimize : bool
        Whether less is better, as of an error.
    """

    def __init__(self, path: str | Path, network: nn.Module, *, minimize: bool = False):
        self.path, self.network, self.sign = Path(path), network, -1 if minimize else 1
        self.best = -float("inf")

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save, where the metric is better; a metric that is no number counts as worst."""
        score = self.sign * float(engine.state.metrics[engine.state.key_metric_name])
        if score > self.best or self.best == -float("inf"):
            save_whole(self.network.state_dict(), self.path)
            self.best = max(self.best, score)

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint keeps: the best score."""
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take up the best score where its weights are there; in another folder the run looks for the best anew."""
        if self.path.is_file():
            self.best = state["best"]


class StopBySignal:
    """End a run on SIGTERM or Ctrl-C with one line that says how to go on.

    Parameters
    ----------
    checkpoint : SaveCheckpoint
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, checkpoint: SaveCheckpoint):
        self.checkpoint = checkpoint
        self.before: dict[int, object] = {}

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        self.engine = engine
        engine.add_event_handler(Events.STARTED, self.listen)
        engine.add_event_handler(Events.COMPLETED, self.leave)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.leave_with)

    def listen(self) -> None:
        """Take over the signals; only the main thread may."""
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self.stop) for number in self.SIGNALS}

    def leave(self) -> None:
        """Give the signals back."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def leave_with(self, engine: Engine, error: BaseException) -> None:
        """Give the signals back and let an error pass."""
        self.leave()
        raise error

    def stop(self, number: int, frame: FrameType | None) -> None:
        """End the process."""
        state = self.engine.state
        self.leave()
        if idist.get_rank() == 0:
            print(
                f"\n{signal.Signals(number).name}: {self.checkpoint.epoch} of {state.max_epochs} epochs are in "
                f"{self.checkpoint.path}; repeat the command with --resume auto to go on",
                file=sys.stderr,
                flush=True,
            )
        raise SystemExit(128 + number)  # as a shell counts it


class LossProgressBar:
    """Show a trainer's progress and its loss."""

    def attach(self, engine: Engine) -> None:
        """Register with a MONAI trainer."""
        ProgressBar(desc="epoch").attach(engine, output_transform=lambda output: {"loss": output[0]["loss"]})


class PrintMetrics:
    """Print a line with all metrics when an evaluation ends.

    Parameters
    ----------
    prefix : str
        First word of the line; "epoch" is followed by its number.
    """

    def __init__(self, prefix: str):
        self.prefix = prefix

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Print "prefix: name value, name value"."""
        values = ", ".join(f"{name} {float(value):.4f}" for name, value in engine.state.metrics.items())
        number = f" {engine.state.epoch}" if self.prefix == "epoch" else ""
        print(f"\n{self.prefix}{number}: {values}", flush=True)


class ScanProgress:
    """A bar that says which scan is at which stage.

    Parameters
    ----------
    evaluator : SupervisedEvaluator
    scans : int
        How many there are.
    shown : bool
    """

    STAGES: ClassVar = {
        Events.GET_BATCH_STARTED: "reading",
        Events.GET_BATCH_COMPLETED: "network",
        IterationEvents.FORWARD_COMPLETED: "writing",
    }

    def __init__(self, evaluator: SupervisedEvaluator, scans: int, *, shown: bool):
        self.evaluator, self.scans, self.begun, self.name, self.handles = evaluator, scans, 0, "", []
        total = scans * len(self.STAGES)
        self.bar = tqdm(total=total, bar_format="{desc} |{bar}| {elapsed}<{remaining}", disable=not shown)

    def __enter__(self) -> "ScanProgress":
        for done, event in enumerate(self.STAGES):
            self.handles.append(self.evaluator.add_event_handler(event, self.show, event, done))
        return self

    def __exit__(self, *_) -> None:
        for handle in self.handles:
            handle.remove()
        self.bar.update(self.begun * len(self.STAGES) - self.bar.n)
        self.bar.close()

    def start(self, name: str) -> None:
        """Go on to the next scan."""
        self.bar.update(self.begun * len(self.STAGES) - self.bar.n)
        self.begun, self.name = self.begun + 1, name

    def show(self, engine: Engine, event, done: int) -> None:
        """Say that a stage has begun, after so many others."""
        number = f"{self.begun}/{self.scans} " if self.scans > 1 else ""
        self.bar.set_description_str(f"{number}{self.name}: {self.STAGES[event]}", refresh=False)
        self.bar.update((self.begun - 1) * len(self.STAGES) + done - self.bar.n)
        self.bar.refresh()

    def say(self, line: str) -> None:
        """Print a line above the bar, on stderr."""
        self.bar.write(line, file=sys.stderr)
