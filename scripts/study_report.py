"""Tables and figures of the study, out of results/study: writes docs/study/*.png and the tables of docs/study.md.

Tables stand between two comments, here and in README and model card, and are replaced; what is written around them
stays. Means are over heads, each head counting once; intervals are of 95 % over heads, by Student's t.
"""

import argparse
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from head_figure import HEADS, figure_of_heads
from scipy import stats

from eqdmri_monai.files.writing import markdown_table, read_rows, replace_part

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- tables: written by scripts/study_report.py -->", "<!-- end of tables -->"
FIRST_VIEWS = {"toshiba": "dwi_toshiba12_rotated/ortho", "canon": "dwi_canon12_rotated/ax_ortho"}
SHIPPED = ("forest", "both")  # contender, data
SMALL = 0.2  # ml, as in study.py
FILES = ("runs", "scans", "schemes")
SCHEMES = {
    "6": "6",
    "10": "10",
    "12": "12",
    "15": "15",
    "signs": "all, signs changed",
    "shuffled": "all, in another order",
}
TURNED = ("SAG30", "ALL20", "ax_ALL20", "sag_ALL20")  # the same lesions in the same head, the field of view turned


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "study")
    parser.add_argument("--root", type=Path, default=ROOT, help="of the project whose pages are written")
    options = parser.parse_args()
    results = [read_rows(options.results / f"{name}.csv") for name in FILES]
    scans = results[1]
    for page, tables_of in PAGES.items():
        replace_part(options.root / page, BEGIN, END, tables_of(*results))
    figures = options.root / "docs" / "study"
    figures.mkdir(exist_ok=True)
    if scans:
        values = {name_of(key): by_head(x, number("average_precision")) for key, x in complete(scans).items()}
        figure_of_heads(values, "average precision on a scanner left out", figures / "heads.png")


def tables(runs: list[dict], scans: list[dict], schemes: list[dict]) -> str:
    """Return the page's tables."""
    if not runs:
        return "No run is finished yet.\n"
    parts = []
    for title, table in (
        ("Average precision on heads of scanners left out", table_of_heads(scans)),
        ("Other scores, means over heads", table_of_scores(runs, scans)),
        ("Average precision and lesions found, by strength and size", table_of_classes(scans)),
        (
            "The same heads turned: average precision in the first field of view and in the turned ones",
            table_of_turns(scans),
        ),
        ("One set of lesions seen by fewer directions: average precision", table_of_schemes(schemes)),
    ):
        if table:
            parts.append(f"**{title}**\n\n{table}")
    return "\n".join(parts)


def grouped(rows: Iterable[dict]) -> dict[tuple, list[dict]]:
    """Return lines by contender, data, steps, learning rate and cohort."""
    out = defaultdict(list)
    for row in rows:
        out[row["contender"], row["data"], int(row["steps"]), row["learning_rate"], row["cohort"]].append(row)
    return dict(sorted(out.items()))


def by_head(rows: list[dict], value: Callable[[dict], float], kind: str = "implanted") -> dict[str, float]:
    """Return the mean over each head's scans, seeds together."""
    out = {}
    for head in HEADS:
        values = [value(row) for row in rows if row["head"] == head and row["kind"] == kind]
        values = [v for v in values if not math.isnan(v)]
        if values:
            out[head] = float(np.mean(values))
    return out


def number(key: str) -> Callable[[dict], float]:
    return lambda row: float(row[key])


def mean_and_interval(values: Iterable[float]) -> tuple[float, float]:
    """Return the mean over heads and half the width of its 95 % interval."""
    values = list(values)
    if len(values) < 2:
        return (values[0] if values else math.nan), math.nan
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values)), float(half)


def name_of(key: tuple) -> str:
    contender, data, steps, rate, cohort = key
    trained = (
        "" if contender in ("boosting", "forest") else f", {steps} steps" + ("" if rate == "own" else f", rate {rate}")
    )
    return f"{contender}, {data}{trained}, {cohort}"


def show(value: float, digits: int = 3) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def complete(scans: list[dict]) -> dict[tuple, list[dict]]:
    """Return lines of what was scored on all heads: means over others would not compare."""
    return {key: lines for key, lines in grouped(scans).items() if {line["head"] for line in lines} >= set(HEADS)}


def table_of_heads(scans: list[dict]) -> str:
    rows = []
    for key, lines in grouped(scans).items():
        heads = by_head(lines, number("average_precision"))
        mean, half = mean_and_interval(heads.values())
        seeds = len({line["seed"] for line in lines})
        whole = key in complete(scans)
        rows.append(
            [
                name_of(key),
                str(seeds),
                *(show(heads.get(head, math.nan)) for head in HEADS),
                f"{show(mean)} ± {show(half)}" if whole else "–",
            ]
        )
    return markdown_table(["contender, data, cohort", "seeds", *HEADS, "mean"], rows)


def table_of_scores(runs: list[dict], scans: list[dict]) -> str:
    training = grouped(runs)
    rows = []
    for key, lines in complete(scans).items():
        cells = [name_of(key)]
        for column in ("auc", "dice", "lesion_sensitivity", "lesion_precision", "calibration_error"):
            cells.append(show(mean_and_interval(by_head(lines, number(column)).values())[0]))
        cells.append(show(mean_and_interval(by_head(lines, number("predicted_ml"), "healthy").values())[0], 1))
        mine = training.get(key, [])
        cells.append(mine[0]["parameters"] if mine else "–")
        cells.append(show(float(np.mean([float(line["training_seconds"]) for line in mine])) / 60, 0) if mine else "–")
        cells.append(mine[0]["training_gb"] if mine else "–")
        rows.append(cells)
    header = ["contender, data, cohort", "AUC", "Dice", "lesions found", "found that are true", "calibration error"]
    return markdown_table([*header, "ml in healthy heads", "parameters", "minutes a training", "GB"], rows)


def table_of_classes(scans: list[dict]) -> str:
    rows = []
    for key, lines in complete(scans).items():
        cells = [name_of(key)]
        for name in ("faint", "medium", "strong"):
            cells.append(show(mean_and_interval(by_head(lines, number(f"average_precision_{name}")).values())[0]))
        for name in ("faint", "medium", "strong", "small", "middle", "large"):
            cells.append(show(mean_and_interval(by_head(lines, number(f"lesion_sensitivity_{name}")).values())[0], 2))
        rows.append(cells)
    classes = ["faint", "medium", "strong"]
    header = [
        *(f"AP {c}" for c in classes),
        *(f"found {c}" for c in (*classes, "below 0.2 ml", "0.2–1 ml", "above 1 ml")),
    ]
    return markdown_table(["contender, data, cohort", *header], rows)


def table_of_turns(scans: list[dict]) -> str:
    rows = []
    for key, lines in complete(scans).items():
        cells = [name_of(key)]
        for head, first in FIRST_VIEWS.items():
            ours = [line for line in lines if line["head"] == head]
            straight = by_head([line for line in ours if line["view"] == first], number("average_precision"))
            turned = by_head([line for line in ours if Path(line["view"]).name in TURNED], number("average_precision"))
            cells += [show(straight.get(head, math.nan)), show(turned.get(head, math.nan))]
        rows.append(cells)
    return markdown_table(
        ["contender, data, cohort", *(f"{h} {w}" for h in FIRST_VIEWS for w in ("first", "turned"))], rows
    )


def table_of_schemes(scans: list[dict]) -> str:
    rows = []
    for key, lines in grouped(scans).items():
        schemes = [by_head([x for x in lines if x["scheme"] == s], number("average_precision")) for s in SCHEMES]
        for head in HEADS:
            if any(head in of_heads for of_heads in schemes):
                cells = (show(of_heads.get(head, math.nan)) for of_heads in schemes)
                rows.append([name_of(key), head, *cells])
    return markdown_table(["contender, data, cohort", "head", *SCHEMES.values()], rows)


def summary(runs: list[dict], scans: list[dict], schemes: list[dict]) -> str:
    """Return what README and model card show: what was scored on all heads, of the cohort of what ships."""
    shipped = [key for key in complete(scans) if key[:2] == SHIPPED]
    rows = []
    for key, lines in complete(scans).items():
        if shipped and key[4] != shipped[-1][4]:
            continue
        heads = by_head(lines, number("average_precision"))
        mean, half = mean_and_interval(heads.values())
        cells = [name_of(key), *(show(heads[head], 2) for head in HEADS), f"{show(mean, 2)} ± {show(half, 2)}"]
        for column in ("dice", "calibration_error"):
            cells.append(show(mean_and_interval(by_head(lines, number(column)).values())[0], 3))
        cells.append(show(mean_and_interval(by_head(lines, number("predicted_ml"), "healthy").values())[0], 1))
        rows.append(cells)
    header = [
        "contender, data, cohort",
        *HEADS,
        "average precision",
        "Dice",
        "calibration error",
        "ml in healthy heads",
    ]
    return "\n".join([markdown_table(header, rows), *(failures(complete(scans)[key]) for key in shipped[-1:])])


def failures(scans: list[dict]) -> str:
    """Return in a sentence where it fails."""

    def percent(column: str) -> str:
        return f"{100 * mean_and_interval(by_head(scans, number(column)).values())[0]:.0f} %"

    faint, small = percent("lesion_sensitivity_faint"), percent("lesion_sensitivity_small")
    called = [float(row["predicted_ml"]) for row in scans if row["kind"] == "healthy"]
    return (
        f"`{SHIPPED[0]}` finds {faint} of faint lesions and {small} of those below {SMALL} ml; "
        f"{percent('lesion_precision')} of what it calls lesions are. In heads without any it calls "
        f"{min(called):.1f} to {max(called):.1f} ml, by scanner and field of view.\n"
    )


# where tables stand between the two comments
PAGES = {"docs/study.md": tables, "README.md": summary, "bundle/docs/README.md": summary}

if __name__ == "__main__":
    main()
