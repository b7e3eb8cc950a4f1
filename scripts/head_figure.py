"""The heads that scores are reported of, and their figure: a bar for a contender's mean, a point for each head."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from eqdmri_monai.files.figures import save_figure

HEADS = ("bangalore", "vanderbilt", "elition", "siemens", "toshiba", "canon")


def figure_of_heads(values: Mapping[str, Mapping[str, float]], title: str, file: Path) -> None:
    """Draw values by contender and head, or whatever else points are, such as seeds."""
    found = {name for points in values.values() for name in points}
    colors = {name: f"C{k}" for k, name in enumerate((*HEADS, *sorted(found - set(HEADS)))) if name in found}
    figure = Figure(figsize=(9, 2 + 0.35 * len(values)), layout="constrained")
    axes = figure.subplots()
    for k, points in enumerate(values.values()):
        axes.barh(k, np.mean(list(points.values())), color="0.85")
        for name, value in points.items():
            axes.plot(value, k, "o", color=colors[name])
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    axes.set_xlabel(title)
    handles = [Line2D([], [], marker="o", ls="", color=color) for color in colors.values()]
    figure.legend(handles, colors, fontsize="small", loc="outside right upper")
    save_figure(file, figure)
