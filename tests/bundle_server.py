"""A process that has imported everything, and runs the bundle in forks of itself, so that killed ones cost no imports.

Each line of its input is a JSON dictionary: "config" and "options" of a run, a file for what it prints ("log"), and
when to send which "signal" ("after" seconds, or "until" there is a file). The answer is the exit code, negative for a
signal.
"""

import importlib
import json
import os
import sys
import time
import warnings
from pathlib import Path

import torch
from monai.bundle import ConfigWorkflow

from eqdmri_monai.errors import one_line_errors

for room in ("networks", "transforms", "inferers", "losses", "metrics", "cohort"):  # what the config names
    importlib.import_module(f"eqdmri_monai.{room}")
importlib.import_module("torch.utils.tensorboard")

CONFIGS = Path(__file__).parents[1] / "bundle" / "configs"


def run(config: str, options: dict, log: str) -> int:
    """Run as the command does, and return its exit code."""
    with Path(log).open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    one_line_errors()
    warnings.simplefilter("ignore")
    try:
        workflow = ConfigWorkflow(str(CONFIGS / config), logging_file=False, **options)
        for step in (workflow.initialize, workflow.run, workflow.finalize):
            step()
    except SystemExit as end:
        return end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def watched(child: int, number: int | None, after: float, until: str | None) -> int:
    """Send a signal to a child when it is time, unless it has ended by then, and return its exit code."""
    start = time.monotonic()
    while number is not None and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if Path(until).is_file() if until else time.monotonic() - start > after:
            os.kill(child, number)  # not waited for yet, so its number is its own
            break
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(run(task["config"], task["options"], task["log"]))
        print(watched(child, task.get("signal"), task.get("after", 0.0), task.get("until")), flush=True)


if __name__ == "__main__":
    main()
