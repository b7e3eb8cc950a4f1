"""Every test runs in float64 and from one seed."""

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded_float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of real scans; see README, "Tests"."""
    folder = Path(os.environ.get("EQDMRI_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real scans at {folder}; set EQDMRI_DATA")
    return folder
