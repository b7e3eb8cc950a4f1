"""Tables of tensors from few directions, out of results/tensors: written between two comments of three pages.

Each head counts once, however many scans and choices of directions it has.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from head_figure import HEADS, figure_of_heads

from eqdmri_monai.files.writing import markdown_table, read_rows, replace_part

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- tables: written by scripts/tensor_report.py -->", "<!-- end of the tensors' tables -->"
SCORES = {  # column: its title, digits
    "own_error": ("own error, share of the fit's", 2),
    "length": ("anisotropy, share of the true", 2),
    "angle": ("direction, degrees", 1),
    "fa_white": ("FA, white matter", 3),
    "fa": ("FA, brain", 3),
    "md": ("MD, µm²/ms", 3),
    "elements": ("elements, µm²/ms", 3),
    "fa_bias_white": ("bias of FA, white matter", 3),
    "fa_bias": ("bias of FA, brain", 3),
}
BRIEF = ("own_error", "length", "angle", "fa", "fa_bias")  # on README and model card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "tensors")
    parser.add_argument("--root", type=Path, default=ROOT, help="of the project whose pages are written")
    options = parser.parse_args()
    for page, tables_of in PAGES.items():
        replace_part(options.root / page, BEGIN, END, tables_of(options.results))
    rows = [row for row in scored(options.results / "scans.csv") if row["directions"] == "6"]
    values = {name: x for name, x in by_head(rows, "own_error").items() if name != "halves" and len(x) == len(HEADS)}
    title = "six directions, a scanner left out: own error of the anisotropic part, share of the fit's"
    figure_of_heads(values, title, options.root / "docs" / "tensors" / "heads.png")


def scored(file: Path) -> list[dict[str, str]]:
    """Return the lines of scans, with what has the reference's noise taken off."""
    return [row | without_reference_noise(row) for row in read_rows(file)]


def brief_table(results: Path) -> str:
    """Return the table of README and model card: six directions, what was scored on all heads."""
    rows = [row for row in scored(results / "scans.csv") if row["directions"] == "6"]
    return table_of_scores(rows, HEADS, BRIEF)


def tables(results: Path) -> str:
    """Return the tables of the study's own page."""
    scans, turned = scored(results / "scans.csv"), read_rows(results / "turned.csv")
    turned = [row for row in turned if row["head"] != "siemens"]  # its two scans are bent in opposite ways, not turned
    known = [row | {"contender": "tensor_mean, heads known"} for row in scored(results / "known.csv")]
    known = [row for row in known if row["directions"] == "6"]
    six = [row for row in scans if row["directions"] == "6"]
    parts = {
        "Six directions: errors, means over six heads": table_of_scores(six, HEADS),
        "Six directions: own error of the anisotropic part in white matter, share of the fit's": table_of_heads(
            [row for row in six + known if row["contender"] != "halves"], "own_error"
        ),
        "Six directions: median angle between principal directions in white matter, degrees": table_of_heads(
            six, "angle"
        ),
        "Six directions: error of FA in white matter": table_of_heads(six, "fa_white"),
        "Ten directions: errors, means over three heads": table_of_scores(
            [row for row in scans if row["directions"] == "10"], ("bangalore", "elition", "siemens")
        ),
        "Turned fields of view: median angle between principal directions, degrees": table_of_heads(turned, "angle"),
    }
    return "\n".join(f"**{title}**\n\n{table}" for title, table in parts.items() if table)


def without_reference_noise(row: dict[str, str]) -> dict[str, str]:
    """Return a contender's own error and its anisotropy, as shares, with the noise of the reference taken off.

    Squares of independent errors add up: what the reference has of the plain fit's distance from it (by both schemes)
    is in everybody's distance. And the product of two independent fits expects the square of the truth.
    """
    error, plain, square, product, share = (
        float(row[k]) for k in ("square_error", "square_error_plain", "square", "plain_with_reference", "noise_share")
    )
    own = max(0.0, (error / plain - share) / (1 - share)) ** 0.5
    return {"own_error": str(own), "length": str((square / product) ** 0.5)}


def by_head(rows: list[dict], column: str) -> dict[str, dict[str, float]]:
    """Return the mean of a column by contender and head."""
    out: dict[str, dict[str, float]] = {}
    for contender in dict.fromkeys(row["contender"] for row in rows):
        for head in HEADS:
            values = [float(r[column]) for r in rows if r["contender"] == contender and r["head"] == head]
            if values:
                out.setdefault(contender, {})[head] = float(np.mean(values))
    return out


def table_of_scores(rows: list[dict], heads: tuple[str, ...], scores: Iterable[str] = tuple(SCORES)) -> str:
    """Return means over heads of what was scored on all of them."""
    columns = {column: by_head(rows, column) for column in scores}
    lines = []
    for contender, of_heads in columns["angle"].items():
        if all(head in of_heads for head in heads):
            means = {c: np.mean([column[contender][head] for head in heads]) for c, column in columns.items()}
            lines.append([contender, *(f"{mean:.{SCORES[c][1]}f}" for c, mean in means.items())])
    return markdown_table(["contender", *(SCORES[c][0] for c in columns)], lines)


def table_of_heads(rows: list[dict], column: str) -> str:
    found = by_head(rows, column)
    heads = [head for head in HEADS if any(head in of_heads for of_heads in found.values())]
    digits = SCORES[column][1]
    lines = [
        [contender, *(f"{of_heads[head]:.{digits}f}" if head in of_heads else "–" for head in heads)]
        for contender, of_heads in found.items()
    ]
    return markdown_table(["contender", *heads], lines)


PAGES = {"docs/tensors.md": tables, "README.md": brief_table, "bundle/docs/README.md": brief_table}

if __name__ == "__main__":
    main()
