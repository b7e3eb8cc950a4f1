"""Tables of tensors from few directions, out of results/tensors: written into docs/tensors.md between two comments.

Each head counts once, however many scans and choices of directions it has.
"""

import argparse
from pathlib import Path

import numpy as np

from eqdmri_monai.files.writing import markdown_table, read_rows

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- tables: written by scripts/tensor_report.py -->", "<!-- end of tables -->"
HEADS = ("bangalore", "vanderbilt", "elition", "siemens", "toshiba", "canon")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "tensors")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "tensors.md")
    options = parser.parse_args()
    page = options.page.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    options.page.write_text(f"{before}{BEGIN}\n\n{tables(options.results)}\n{END}{after}")


def tables(results: Path) -> str:
    """Return the page's tables."""
    scans, turned = (read_rows(results / f"{name}.csv") for name in ("scans", "turned"))
    scans = [row | without_reference_noise(row) for row in scans]
    turned = [row for row in turned if row["head"] != "siemens"]  # its two scans are bent in opposite ways, not turned
    six = [row for row in scans if row["directions"] == "6"]
    parts = {
        "Six directions: errors, means over six heads": table_of_scores(six, HEADS),
        "Six directions: own error of the anisotropic part in white matter, share of the fit's": table_of_heads(
            [row for row in six if row["contender"] != "halves"], "own_error"
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


def table_of_scores(rows: list[dict], heads: tuple[str, ...]) -> str:
    """Return means over heads of what was scored on all of them."""
    columns = {column: by_head(rows, column) for column in SCORES}
    lines = []
    for contender, of_heads in columns["angle"].items():
        if all(head in of_heads for head in heads):
            means = [np.mean([columns[c][contender][head] for head in heads]) for c in SCORES]
            lines.append([contender, *(f"{m:.{d}f}" for m, (_, d) in zip(means, SCORES.values(), strict=True))])
    return markdown_table(["contender", *(title for title, _ in SCORES.values())], lines)


def table_of_heads(rows: list[dict], column: str) -> str:
    found = by_head(rows, column)
    heads = [head for head in HEADS if any(head in of_heads for of_heads in found.values())]
    digits = SCORES[column][1]
    lines = [
        [contender, *(f"{of_heads[head]:.{digits}f}" if head in of_heads else "–" for head in heads)]
        for contender, of_heads in found.items()
    ]
    return markdown_table(["contender", *heads], lines)


if __name__ == "__main__":
    main()
