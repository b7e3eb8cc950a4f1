import os
import signal

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from eqdmri_monai.handlers import OwnEpochLength, SaveBest, SaveCheckpoint, StopBySignal


@pytest.fixture
def trainer():
    """An engine that adds 1 to the weights of `trainer.network` in each of 3 steps of an epoch."""

    def step(engine: Engine, batch: int) -> None:
        with torch.no_grad():
            trainer.network.weight += 1

    trainer = Engine(step)
    trainer.network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(trainer.network.weight)
    return trainer


def save(trainer: Engine, path, **options) -> SaveCheckpoint:
    handler = SaveCheckpoint(path, {"network": trainer.network, "trainer": trainer}, **options)
    handler.attach(trainer)
    return handler


def saved(path) -> int:
    """Return how many steps the saved weights took."""
    state = torch.load(path)
    assert state["network"]["weight"] == state["trainer"]["iteration"]
    return state["trainer"]["iteration"]


@pytest.mark.parametrize(("interval", "expected"), [(1, [0, 3, 6, 9]), (2, [0, 0, 6, 9])])
def test_a_checkpoint_is_saved_at_the_start_after_epochs_and_at_the_end(trainer, tmp_path, interval, expected):
    path, seen = tmp_path / "checkpoint.pt", []
    save(trainer, path, interval=interval)
    trainer.add_event_handler(Events.STARTED | Events.EPOCH_COMPLETED(every=1), lambda: seen.append(saved(path)))
    trainer.run(range(3), max_epochs=3)
    assert [*seen[:3], saved(path)] == expected


def test_a_run_that_ends_within_an_epoch_keeps_the_epoch_before(trainer, tmp_path):
    save(trainer, tmp_path / "checkpoint.pt")
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), trainer.terminate)
    trainer.run(range(3), max_epochs=3)
    assert saved(tmp_path / "checkpoint.pt") == 3


def test_weights_that_are_not_finite_do_not_replace_those_that_are(trainer, tmp_path):
    save(trainer, tmp_path / "checkpoint.pt")
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=5), lambda: nn.init.constant_(trainer.network.weight, float("nan"))
    )
    with pytest.raises(ValueError, match=r"epoch 2: the weights are not finite any more, so .*checkpoint.pt stays"):
        trainer.run(range(3), max_epochs=3)
    assert saved(tmp_path / "checkpoint.pt") == 3


def validate(handler: SaveBest, score: float) -> None:
    """Validate once, with a network whose weight is the score."""
    evaluator = Engine(lambda engine, batch: None)
    evaluator.state.metrics, evaluator.state.key_metric_name = {"score": torch.tensor(score)}, "score"
    nn.init.constant_(handler.network.weight, score)
    handler.attach(evaluator)
    evaluator.run([0])


def best(path) -> float:
    return torch.load(path)["weight"].item()


@pytest.mark.parametrize(("minimize", "scores", "expected"), [(False, [1, 3, 2], 3), (True, [3, 1, 2], 1)])
def test_the_best_weights_are_kept_also_after_a_resume(tmp_path, minimize, scores, expected):
    path = tmp_path / "model.pt"
    handler = SaveBest(path, nn.Linear(1, 1, bias=False), minimize=minimize)
    for score in scores:
        validate(handler, score)
    assert best(path) == expected
    resumed = SaveBest(path, nn.Linear(1, 1, bias=False), minimize=minimize)
    resumed.load_state_dict(handler.state_dict())
    validate(resumed, scores[2])  # worse than the best before
    assert best(path) == expected
    elsewhere = SaveBest(tmp_path / "elsewhere.pt", nn.Linear(1, 1, bias=False), minimize=minimize)
    elsewhere.load_state_dict(handler.state_dict())
    validate(elsewhere, scores[2])
    assert best(tmp_path / "elsewhere.pt") == scores[2]


def test_weights_without_a_score_are_better_than_none_and_worse_than_any_with_one(tmp_path):
    handler = SaveBest(tmp_path / "model.pt", nn.Linear(1, 1, bias=False))
    validate(handler, float("nan"))
    assert best(tmp_path / "model.pt") != best(tmp_path / "model.pt")
    for score, expected in ((-5.0, -5.0), (float("nan"), -5.0), (1.0, 1.0)):
        validate(handler, score)
        assert best(tmp_path / "model.pt") == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_with_a_line_that_says_how_to_go_on(trainer, tmp_path, capsys, number):
    before = signal.getsignal(number)
    StopBySignal(save(trainer, tmp_path / "checkpoint.pt")).attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=5), lambda: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as end:
        trainer.run(range(3), max_epochs=3)
    assert end.value.code == 128 + number
    assert capsys.readouterr().err == (
        f"\n{number.name}: 1 of 3 epochs are in {tmp_path}/checkpoint.pt; "
        "repeat the command with --resume auto to go on\n"
    )
    assert saved(tmp_path / "checkpoint.pt") == 3
    assert signal.getsignal(number) is before


def test_signals_are_given_back_at_the_end_and_after_an_error(trainer, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    StopBySignal(save(trainer, tmp_path / "checkpoint.pt")).attach(trainer)
    trainer.add_event_handler(Events.EPOCH_STARTED(once=2), lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.run(range(3), max_epochs=3)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_checkpoint_of_more_steps_an_epoch_goes_on_in_steps_of_this_run():
    seen = []
    trainer = Engine(lambda engine, batch: seen.append(batch))
    trainer.data_loader = range(3)
    trainer.load_state_dict({"epoch": 2, "epoch_length": 7, "max_epochs": 4})
    OwnEpochLength().attach(trainer)
    trainer.run(trainer.data_loader)
    assert seen == 2 * [0, 1, 2]
    assert trainer.state.iteration == 4 * 3
