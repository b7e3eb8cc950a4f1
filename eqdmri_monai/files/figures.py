"""Figures as files."""

from pathlib import Path

from matplotlib.figure import Figure

from eqdmri_monai.files.writing import written_whole


def save_figure(path: str | Path, figure: Figure) -> None:
    """Write a figure as PNG, 80 dots an inch, whole or not at all; its folder is made where there is none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        figure.savefig(part, dpi=80, format="png")
