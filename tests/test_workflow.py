"""The command line: names are only ever names, and what does not exist is refused."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command_line import CommandLine
from monai.bundle import create_workflow

from eqdmri_monai.workflow import Workflow

BUNDLE = Path(__file__).parents[1] / "bundle"
INFERENCE, TRAIN = (BUNDLE / f"{name}.yaml" for name in ("inference", "train"))
ODD_NAMES = [
    '$open("x","w").name', "$scan.nii", "%scan.nii", "@dwi", "@scan.nii", "$@dwi", "20240131", "1e3", "0x10", "True",
    "None", "null", "a,b", "[1, 2]", "a#b.nii", "a::b.nii", "{1}", "{a: b}", "{…}", "(x)", "a b.nii", " lead", "trail ",
    "a'b\"c", "back\\slash", "a\nb", "-dash.nii", "--dwi", "~", "$HOME", "${x}", "Übung 試験.nii", "\udcff.nii",
    "x" * 240, "'quoted'", "import os", "#", "a=b",
]  # fmt: skip


@pytest.fixture
def command(monkeypatch, capfd):
    for name in ("ignite", "monai.bundle.scripts", "monai.bundle.workflows"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.getLogger(name).level)
    return CommandLine(monkeypatch, capfd)


@pytest.fixture
def echo(tmp_path, monkeypatch):
    """A bundle whose run writes its options to said.json, an args file of it, and a folder to stand in."""
    (tmp_path / "configs").mkdir()
    config = {
        "imports": ["$import json"],
        "device": "cpu",
        "bundle_root": ".", "dwi": None, "section": "testing", "output_dir": "$@bundle_root + '/eval'",
        "threshold": 0.5, "epochs": 3, "amp": False, "window": [-1, -1, -1], "spacing": [2.0, 2.0, 2.0], "shells": None,
        "network_def": {"_target_": "eqdmri_monai.losses.MaskedBCELoss", "positive_weight": 2.0},
        "initialize": [{"_target_": "eqdmri_monai.workflow.guard_command_line"}],
        "said": "${k: v for k, v in dict(dwi=@dwi, section=@section, output_dir=@output_dir, threshold=@threshold, "
        "epochs=@epochs, amp=@amp, window=@window, spacing=@spacing, bundle_root=@bundle_root).items()}",
        "run": ["$json.dump(@said, open(@bundle_root + '/said.json', 'w'))"],
    }  # fmt: skip
    (tmp_path / "configs" / "echo.yaml").write_text(yaml.safe_dump(config))
    args = {"workflow_name": "eqdmri_monai.workflow.Workflow", "config_file": "configs/echo.yaml"}
    (tmp_path / "echo.yaml").write_text(yaml.safe_dump(args))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def said(folder: Path) -> dict:
    return json.loads((folder / "said.json").read_text())


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_is_only_ever_a_name(command, echo, name):
    code, line = command("--args_file", "../echo.yaml", f"--dwi={name}", f"--output_dir={name}", f"--section={name}")
    assert code == 0, line
    assert {said(echo)[key] for key in ("dwi", "output_dir", "section")} == {name}
    assert list((echo / "here").iterdir()) == []


def test_a_name_is_only_ever_a_name_from_python_too(echo):
    for name in ODD_NAMES:
        workflow = create_workflow(workflow_name=Workflow, config_file=str(echo / "configs" / "echo.yaml"), dwi=name)
        assert workflow.parser.get_parsed_content("dwi") == name


def test_values_of_the_configs_kind_arrive(command, echo):
    code, line = command(
        "--args_file", "../echo.yaml", "--threshold", "$0.1 + 0.2", "--epochs", 7, "--amp", "true",
        "--window", "[8,8,4]", "--spacing", 3, "--network_def#positive_weight", 4,
    )  # fmt: skip
    assert code == 0, line
    assert said(echo)["threshold"] == pytest.approx(0.3)
    expected = {"epochs": 7, "amp": True, "window": [8, 8, 4], "spacing": [3, 3, 3], "dwi": None, "bundle_root": ".."}
    assert said(echo) == said(echo) | expected
    assert command("--args_file", "../echo.yaml", "--amp") == (0, "")
    assert said(echo)["amp"] is True


def test_new_names_come_in_a_config_or_are_used_by_an_option(command, echo):
    (echo / "more.yaml").write_text("mine: 3\n")
    files = f"['{echo}/configs/echo.yaml','{echo}/more.yaml']"
    typed = ("--workflow_name", "eqdmri_monai.workflow.Workflow", "--config_file", files)
    assert command(*typed, "--mine", 4, "--threshold", "$@mine / 8")[0] == 0
    assert said(echo)["threshold"] == 0.5
    assert command("--args_file", "../echo.yaml", "--mine", 4, "--threshold", "$@mine / 8")[0] == 0
    assert command("--args_file", "../echo.yaml", "--mine", 4)[0] == 1


REFUSED = {
    ("--treshold", 0.3): "--treshold: no such option in {config}; did you mean --threshold?",
    ("--output-dirr", "x"): "--output_dirr: no such option in {config}; did you mean --output_dir?",
    ("--positive_weight", 3): "--positive_weight: no such option in {config}; did you mean "
    "--network_def#positive_weight?",
    ("--network_def#positive_wait", 3): "--network_def#positive_wait: no such option in {config}; did you mean "
    "--network_def#positive_weight?",
    ("--network_def::xyz", 3): "--network_def::xyz: no such option in {config}; network_def has positive_weight",
    ("--window#3", 3): "--window#3: no such option in {config}; window has 0, 1, 2",
    ("--config_fiel", "x"): "--config_fiel: no such option in {config}; did you mean --config_file?",
    ("--qqq", 1): "--qqq: no such option in {config}; --help lists those that are there",
    ("--treshold", "None"): "--treshold: no such option in {config}; did you mean --threshold?",
    ("--noamp",): "--noamp: no such option in {config}; did you mean --amp?",
    ("--dwi",): "--dwi has no value",
    ("--dwi", ""): "--dwi has no value",
    ("--dwi", "--output_dir", "x"): "--dwi has no value",
    ("--dwi", "a", "--dwi", "b"): "--dwi is given twice; many scans are a list, --datalist",
    ("--epochs", 1, "--epochs", 2): "--epochs is given twice",
    ("--device", "cuda:99"): "--device cuda:99: no such device here (",
    ("--device", "gpu"): "--device gpu: no such device here (Expected one of cpu, cuda, ",
    ("--dwi", "a", "b.nii"): "'b.nii' belongs to no option; put a value that has blanks in quotes",
    ("--threshold", "abc"): "--threshold must be a number, such as 0.5, not 'abc'",
    ("--threshold", "None"): "--threshold must be a number, such as 0.5, not None",
    ("--threshold", "1e999"): "--threshold must be a number, such as 0.5, not inf",
    ("--epochs", 2.5): "--epochs must be a whole number, such as 3, not 2.5",
    ("--network_def", 5): "--network_def is a part of the config and cannot be 5; --network_def#… changes what is "
    "in it",
    ("--window", "x"): "--window must be 3 whole numbers, such as [-1,-1,-1], not 'x'",
    ("--meta_file", "none.json"): "none.json: no such file",
    ("--amp", "maybe"): "--amp must be True or False, not 'maybe'",
    ("--window", "[32,32]"): "--window must be 3 whole numbers, such as [-1,-1,-1], not [32, 32]",
    ("--spacing", "[2,2,x]"): "--spacing must be 3 numbers, such as [2.0,2.0,2.0], not [2, 2, 'x']",
    ("--said", "@nothing"): "the referring item `@nothing` is not defined in the config content.",
    ("--threshold", "$1/0"): "ZeroDivisionError: division by zero",
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_meant_is_refused_in_one_sentence(command, echo, words):
    code, line = command("--args_file", "../echo.yaml", *words)
    sentence = "error: " + REFUSED[words].format(config="../configs/echo.yaml")
    assert (code, line[: len(sentence)]) == (1, sentence)
    assert sentence.endswith(", ") or sentence.endswith("(") or line == sentence
    assert not (echo / "said.json").exists()


PLAIN = {
    ("--treshold", 0.3): "--treshold: no such option in {config}; did you mean --threshold?",
    ("--dwi", '$open("x","w").name'): "--dwi '$open(\"x\",\"w\").name': MONAI takes this name for something else; add "
    "--workflow_name eqdmri_monai.workflow.Workflow, or choose another name",
    ("--dwi", 20240131): "--dwi '20240131': MONAI takes this name for something else; add --workflow_name "
    "eqdmri_monai.workflow.Workflow, or choose another name",
    ("--dwi", "a#b.nii"): "--dwi 'a#b.nii': MONAI takes this name for something else; add --workflow_name "
    "eqdmri_monai.workflow.Workflow, or choose another name",
    ("--amp", "false"): "--amp false: write False",
    ("--spacing", 2): "--spacing 2: write [2, 2, 2]",
    ("--window", "[32,32]"): "--window must be 3 whole numbers, such as [-1,-1,-1], not [32, 32]",
}  # fmt: skip


@pytest.mark.parametrize("words", PLAIN)
def test_the_plain_command_refuses_what_it_would_ignore_or_change(command, echo, words):
    config = echo / "configs" / "echo.yaml"
    code, line = command("--config_file", config, "--bundle_root", echo, *words)
    assert (code, line) == (1, "error: " + PLAIN[words].format(config=config))
    assert list((echo / "here").iterdir()) == []


def test_the_plain_command_runs(command, echo):
    words = ("--config_file", echo / "configs" / "echo.yaml", "--bundle_root", echo, "--dwi", "a b.nii")
    assert command(*words, "--threshold", 0.3, "--network_def#positive_weight", 3)[0] == 0
    assert said(echo)["dwi"] == "a b.nii"
    assert said(echo)["threshold"] == 0.3


CONFIGS = {
    "a: [1, 2\n": "not a config (while parsing a flow sequence",
    "a: 1\n": "nothing to run; lay it over another config",
    "- 1\n": "not a config; it has no names",
}


@pytest.mark.parametrize("text", CONFIGS)
def test_a_config_that_is_none_is_refused(command, echo, text):
    (echo / "bad.yaml").write_text(text)
    typed = ("--workflow_name", "eqdmri_monai.workflow.Workflow", "--config_file")
    code, line = command(*typed, "../bad.yaml")
    assert code == 1
    assert line.startswith(f"error: ../bad.yaml: {CONFIGS[text]}")
    assert command(*typed, "none.yaml") == (1, "error: none.yaml: no such config")
    assert command(*typed[:2]) == (
        1,
        "error: no config is named; --config_file bundle/configs/inference.yaml names one",
    )


@pytest.mark.parametrize("args", ["inference", "train", "evaluate"])
def test_help_lists_the_options_with_their_comments(command, args, capfd):
    assert command("--args_file", BUNDLE / f"{args}.yaml", "--help")[0] == 0


def test_help_of_inference(command, monkeypatch, capfd):
    monkeypatch.setattr(command, "capfd", type("", (), {"readouterr": staticmethod(lambda: ("", ""))}))
    command("--args_file", INFERENCE, "--help")
    lines = capfd.readouterr().out.splitlines()
    assert "--threshold 0.5  # of the probability, for the mask" in lines
    assert lines[0] == "--bundle_root ."
    assert lines[-1].startswith("--device ")


@pytest.mark.parametrize("target", ["train", "inference", "evaluate"])
def test_options_of_the_shipped_configs_are_told_from_mistakes(command, target):
    code, line = command("--args_file", BUNDLE / f"{target}.yaml", "--thresold", 0.3)
    assert code == 1
    assert line.endswith("did you mean --threshold?")
    code, line = command("--args_file", BUNDLE / f"{target}.yaml", "--network_def#recompute", "True", "--run", "[]")
    assert code == 0, line


def test_an_interrupted_command_says_so_without_a_traceback():
    code = "from eqdmri_monai.errors import one_line_errors; one_line_errors(); raise KeyboardInterrupt"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.strip() == "interrupted"
