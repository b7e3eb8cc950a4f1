"""Imports go one way, from room to room: what computes needs torch and e3nn alone, what reads files comes after."""

import ast
import sys
from pathlib import Path

import pytest

import eqdmri_monai

ROOT = Path(eqdmri_monai.__file__).parent
# Each room imports only what stands before it; a new one finds its place here.
CORE = ["frames", "gradients", "tensors", "symmetry", "groups", "neighbours", "bases", "nn", "networks"]
ORDER = [
    *CORE, "precision", "errors", "options", "files", "transforms", "inferers", "losses", "metrics", "handlers",
    "statistics", "report", "simulate", "cohort", "workflow",
]  # fmt: skip
THE_CORE_NEEDS = {"torch", "e3nn"}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return names


def test_every_room_has_its_place():
    assert {room(path) for path in FILES} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_a_room_imports_only_what_stands_before_it(name):
    allowed = ORDER[: ORDER.index(name) + 1]
    for path in FILES:
        if room(path) == name:
            ours = {module for module in imports(path) if module.startswith("eqdmri_monai.")}
            assert not {m for m in ours if m.split(".")[1] not in allowed}, path
            assert f"eqdmri_monai.{name}" not in ours, f"{path}: name the file, or imports go in a circle"


@pytest.mark.parametrize("name", CORE)
def test_the_core_needs_torch_and_e3nn_alone(name):
    for path in FILES:
        if room(path) == name:
            tops = {module.split(".")[0] for module in imports(path)} - {"eqdmri_monai"} - sys.stdlib_module_names
            assert tops <= THE_CORE_NEEDS, path


def test_the_package_imports_neither_scripts_nor_bundle():
    for path in FILES:
        assert not {module.split(".")[0] for module in imports(path)} & {"scripts", "bundle", "tests"}, path
