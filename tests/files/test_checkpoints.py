import multiprocessing
import os
import resource
import signal

import pytest
import torch
from torch import nn

from eqdmri_monai.files.checkpoints import checkpoint_to_resume, hold_folder, save_whole


def state(network: nn.Module, epochs: int = 3) -> dict:
    trainer = {"iteration": 5 * epochs, "epoch_length": 5, "max_epochs": 9}
    return {"network": network.state_dict(), "optimizer": {}, "lr_scheduler": {}, "trainer": trainer, "best": {}}


@pytest.fixture
def decide(tmp_path):
    """Decide in a folder with room for a training, for a network of two weights, 4 epochs."""
    (tmp_path / "run").mkdir()
    files = {"checkpoint": tmp_path / "run" / "checkpoint.pt", "best": tmp_path / "run" / "model.pt"}
    return lambda resume: checkpoint_to_resume(resume, **files, network=nn.Linear(2, 1), epochs=4)


def test_an_empty_folder_begins(decide):
    assert decide(None) is None
    assert decide("auto") is None


def test_a_folder_with_a_checkpoint_goes_on_from_it_alone(decide, tmp_path, capsys):
    checkpoint, other = tmp_path / "run" / "checkpoint.pt", tmp_path / "other.pt"
    for path in (checkpoint, other):
        save_whole(state(nn.Linear(2, 1)), path)
    save_whole(nn.Linear(2, 1).state_dict(), tmp_path / "run" / "model.pt")
    for resume in ("auto", str(checkpoint), tmp_path / "run" / ".." / "run" / "checkpoint.pt"):
        assert torch.load(decide(resume))["trainer"]["iteration"] == 15
    assert "checkpoint.pt: 3 of 4 epochs are done" in capsys.readouterr().out
    with pytest.raises(
        ValueError, match=r"checkpoint.pt: a training before this one wrote it; go on with --resume auto"
    ):
        decide(None)
    with pytest.raises(ValueError, match=r"other.pt: going on from it would replace .*checkpoint.pt"):
        decide(other)


def test_a_checkpoint_of_another_folder_goes_on_where_nothing_is(decide, tmp_path):
    save_whole(state(nn.Linear(2, 1)), tmp_path / "other.pt")
    assert decide(tmp_path / "other.pt") == str(tmp_path / "other.pt")


@pytest.mark.parametrize("resume", [None, "auto", "other.pt", "run/model.pt"])
def test_weights_that_lie_there_are_never_replaced(decide, tmp_path, resume):
    save_whole(state(nn.Linear(2, 1)), tmp_path / "other.pt")
    save_whole(nn.Linear(2, 1).state_dict(), tmp_path / "run" / "model.pt")
    refused = r"model.pt: (a training before this one wrote it; cho|no checkpoint of a train)|would replace .*model.pt"
    with pytest.raises(ValueError, match=refused):
        decide(resume if resume in (None, "auto") else tmp_path / resume)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def diverge(path):
    network = nn.Linear(2, 1)
    nn.init.constant_(network.bias, float("nan"))
    save_whole(state(network), path)


BAD_CHECKPOINTS = {
    "missing": (lambda path: path.unlink(), FileNotFoundError, r"no such file; --resume auto"),
    "cut short": (cut, ValueError, r"not a file of weights, or damaged"),
    "weights alone": (
        lambda path: save_whole(nn.Linear(2, 1).state_dict(), path),
        ValueError,
        r"no checkpoint of a training, best is missing",
    ),
    "another network": (
        lambda path: save_whole(state(nn.Linear(3, 1)), path),
        ValueError,
        r"weights of another network",
    ),
    "not finite": (diverge, ValueError, r"1 of the 1 weights in bias are not finite"),
    "further": (lambda path: save_whole(state(nn.Linear(2, 1), 5), path), ValueError, r"5 epochs are done, more than"),
}


@pytest.mark.parametrize("case", BAD_CHECKPOINTS)
def test_checkpoints_that_cannot_be_gone_on_from_are_refused(decide, tmp_path, case):
    spoil, error, words = BAD_CHECKPOINTS[case]
    path = tmp_path / "other.pt"
    save_whole(state(nn.Linear(2, 1)), path)
    spoil(path)
    with pytest.raises(error, match=words) as raised:
        decide(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert list((tmp_path / "run").iterdir()) == []


def test_a_full_disk_keeps_the_file_before(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_whole({"a": torch.zeros(2)}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"checkpoint.pt: cannot be written .*make room"):
            save_whole({"a": torch.zeros(20_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.load(path)["a"].shape == (2,)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def hold(folder, answers):
    try:
        file = hold_folder(folder)
        answers.put("held")
        signal.pause()
        file.close()
    except ValueError as e:
        answers.put(str(e))


def test_two_trainings_do_not_share_a_folder_and_a_killed_one_gives_it_free(tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    for _ in range(2):  # the second time after a kill
        first, second = (context.Process(target=hold, args=(tmp_path, answers)) for _ in range(2))
        first.start()
        assert answers.get(timeout=60) == "held"
        second.start()
        assert answers.get(timeout=60) == (
            f"{tmp_path}: another process is training there; wait until it ends, or choose another --output_dir"
        )
        second.join()
        os.kill(first.pid, signal.SIGKILL)
        first.join()
    file = hold_folder(tmp_path)
    assert file is not None
    file.close()
