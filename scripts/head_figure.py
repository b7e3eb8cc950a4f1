"""The heads that scores are reported of, and their figure: a bar for a contender's mean, a point for each head."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from eqdmri_monai.files.figures import save_figure

HEADS = ("bangalore", "vanderbilt", "elition", "siemens", "toshiba", "canon")


def figure_of_heads(values: Mapping[str, Mapping[str, float]], title: str, file: Path) -> None:
    """Draw values by contender and head."""
    figure = Figure(figsize=(9, 2 + 0.35 * len(values)), layout="constrained")
    axes = figure.subplots()
    for k, of_heads in enumerate(values.values()):
        axes.barh(k, np.mean(list(of_heads.values())), color="0.85")
        for head, value in of_heads.items():
            axes.plot(value, k, "o", color=f"C{HEADS.index(head)}")
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    axes.set_xlabel(title)
    handles = [Line2D([], [], marker="o", ls="", color=f"C{k}") for k in range(len(HEADS))]
    figure.legend(handles, HEADS, fontsize="small", loc="outside right upper")
    save_figure(file, figure)
