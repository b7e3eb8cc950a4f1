"""Imports go one way: what computes needs torch and e3nn alone, and the package never reaches for its users."""

import ast
from pathlib import Path

import pytest

import eqdmri_monai

ROOT = Path(eqdmri_monai.__file__).parent
ORDER = ["frames", "gradients", "tensors", "symmetry", "groups", "neighbours", "bases", "nn", "networks"]
STANDARD = {
    "abc",
    "collections",
    "copy",
    "dataclasses",
    "fractions",
    "functools",
    "itertools",
    "math",
    "pathlib",
    "pickle",
    "warnings",
}


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return names


def part(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("name", ORDER)
def test_the_core_needs_torch_and_e3nn_alone_and_earlier_parts(name):
    files = [ROOT / f"{name}.py"] if (ROOT / f"{name}.py").exists() else sorted((ROOT / name).glob("*.py"))
    allowed = set(ORDER[: ORDER.index(name) + 1])
    for file in files:
        for module in imports(file):
            top = module.split(".")[0]
            assert top in {"torch", "e3nn", "eqdmri_monai"} | STANDARD, f"{file} imports {module}"
            assert top != "eqdmri_monai" or part(module) in allowed, f"{file} imports {module}"


def test_the_package_imports_neither_scripts_nor_bundle():
    for file in ROOT.rglob("*.py"):
        assert not {m.split(".")[0] for m in imports(file)} & {"scripts", "bundle", "tests"}, file
