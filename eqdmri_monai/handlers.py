"""Ignite handlers: training that can be stopped and resumed, in one process or in several, and what a run shows."""

import sys
from typing import ClassVar

import ignite.distributed as idist
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.utils import set_determinism
from tqdm import tqdm


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
