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
import yaml
from head_figure import HEADS, figure_of_heads
from scipy import stats

from eqdmri_monai.files.writing import markdown_table, read_rows, replace_part

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "study"
BEGIN, END = "<!-- tables: written by scripts/study_report.py -->", "<!-- end of tables -->"
FIRST_VIEWS = {"toshiba": "dwi_toshiba12_rotated/ortho", "canon": "dwi_canon12_rotated/ax_ortho"}
SHIPPED = ("forest", "both")  # contender, data
THRESHOLD = yaml.safe_load((ROOT / "bundle/configs/forest_inference.yaml").read_text())["threshold"]
ONE_HEAD = "vanderbilt"  # what the plan's short form scores all networks on
SHORT = "pqnet_short"  # question 4 is about this contender and what is laid over it
FEWER = {
    "share13": "13 % of the scans",
    "share26": "26 % of the scans",
    "share52": "52 % of the scans",
    "both": "all scans",
    "heads2": "scans of two heads",
    "heads3": "scans of three heads",
}
KNOWN_AND_LEFT_OUT = ("choice_average_precision", "average_precision")  # of a finished run
SMALL = 0.2  # ml, as in study.py
FILES = ("runs", "scans", "schemes", "thresholds")
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
    runs, scans, schemes, _ = results
    for page, tables_of in PAGES.items():
        replace_part(options.root / page, BEGIN, END, tables_of(*results))
    figures = options.root / "docs" / "study"
    figures.mkdir(exist_ok=True)
    for name, (values, words) in pictures(runs, scans, schemes).items():
        if values:
            figure_of_heads(values, f"average precision {words}", figures / f"{name}.png")


def pictures(
    runs: list[dict], scans: list[dict], schemes: list[dict]
) -> dict[str, tuple[dict[str, dict[str, float]], str]]:
    """Return for each picture its series, by their names and heads or seeds, and what they are."""
    precision, latest = number("average_precision"), {}
    for (contender, data, *_), lines in sorted(complete(scans).items(), key=lambda item: item[0][4] == cohort(scans)):
        latest[contender, data] = lines  # of several cohorts, that of what ships
    contenders = {name: by_head(lines, precision) for (name, data), lines in latest.items() if data == SHIPPED[1]}
    of_data = {data: by_head(lines, precision) for (name, data), lines in latest.items() if name == SHIPPED[0]}
    turned = {}
    for (name, data), lines in latest.items():
        if data == SHIPPED[1]:
            turned[name], turned[f"{name}, turned"] = views(lines)
    of_schemes = {
        words: by_head([line for line in shipped(schemes) if line["scheme"] == scheme], precision)
        for scheme, words in SCHEMES.items()
    }
    on_head = f"on {ONE_HEAD}, its scanner left out"
    return {
        "heads": (contenders, "on a scanner left out"),
        "networks": (on_one(runs), on_head),
        "architectures": (on_one(runs, SHORT), on_head),
        "fewer": (fewer(scans), f"of {SHIPPED[0]} {on_head}"),
        "data": (of_data, f"of {SHIPPED[0]}, by training data"),
        "turned": (turned, "in the first field of view and in turned ones"),
        "schemes": (of_schemes, f"of {SHIPPED[0]}, by directions"),
    }


def on_one(runs: list[dict], begins: str = "") -> dict[str, dict[str, float]]:
    """Return average precision by seed on the head that all contenders are scored on, the best mean first.

    Of several learning rates that which is best on known heads, and those tried by several seeds; some contenders by
    how their names begin.
    """
    shown = {(*key, chosen(by_rate)) for key, by_rate in by_rates(runs).items()}
    shown |= {(r["contender"], int(r["steps"]), rate_of(r)) for r in runs_on_one(runs) if r["seed"] != "0"}
    out = defaultdict(dict)
    for row in runs_on_one(runs):
        key = row["contender"], int(row["steps"]), rate_of(row)
        if key in shown and row["contender"].startswith(begins):
            name = f"{key[0]}, {key[1]} steps" if key[1] else key[0]
            name += "" if row["learning_rate"] == "own" else f", rate {row['learning_rate']}"
            out[name][f"seed {row['seed']}"] = float(row["average_precision"])
    return dict(sorted(out.items(), key=lambda item: -np.mean(list(item[1].values()))))


def fewer(scans: list[dict]) -> dict[str, dict[str, float]]:
    """Return average precision of what ships, on that head, when it is trained on fewer scans or heads."""
    of_data = {}
    for (contender, data, *_, whose), lines in grouped(scans).items():
        if contender == SHIPPED[0] and whose == cohort(scans):
            of_data[data] = by_head([x for x in lines if x["head"] == ONE_HEAD], number("average_precision"))
    return {words: of_data[data] for data, words in FEWER.items() if of_data.get(data)}


def views(scans: list[dict]) -> tuple[dict[str, float], dict[str, float]]:
    """Return average precision by head in the first field of view and in turned ones, of heads that have both."""
    first = [line for line in scans if line["view"] in FIRST_VIEWS.values()]
    turned = [line for line in scans if Path(line["view"]).name in TURNED]
    return by_head(first, number("average_precision")), by_head(turned, number("average_precision"))


def tables(runs: list[dict], scans: list[dict], schemes: list[dict], thresholds: list[dict]) -> str:
    """Return the page's tables."""
    if not runs:
        return "No run is finished yet.\n"
    parts = []
    for title, table in (
        ("Average precision on heads of scanners left out", table_of_heads(scans)),
        (f"All contenders on {ONE_HEAD}, its scanner left out", table_of_one(runs)),
        (
            "Learning rates: average precision on known heads, by which they are chosen, and in brackets on "
            f"{ONE_HEAD}, left out",
            table_of_rates(runs),
        ),
        (
            f"Three seeds: average precision on {ONE_HEAD}, left out, and in brackets on known heads",
            table_of_seeds(runs),
        ),
        ("Other scores, means over heads", table_of_scores(runs, scans)),
        ("Average precision and lesions found, by strength and size", table_of_classes(scans)),
        (
            "The same heads turned: average precision in the first field of view and in the turned ones",
            table_of_turns(scans),
        ),
        (
            f"One set of lesions seen by fewer directions: average precision of `{SHIPPED[0]}`",
            table_of_schemes(shipped(schemes)),
        ),
        (
            f"What `{SHIPPED[0]}` calls lesion, by threshold; in brackets the head with the most",
            table_of_thresholds(shipped(thresholds)),
        ),
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


def cohort(scans: list[dict]) -> str:
    """Return the cohort of what ships, or the last one where it has no lines."""
    return (shipped(scans) or scans)[-1]["cohort"] if scans else ""


def shipped(rows: list[dict]) -> list[dict]:
    """Return the lines of what ships."""
    return [row for row in rows if (row["contender"], row["data"]) == SHIPPED]


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
    """Return lines of what was scored on all heads, of the seeds that were: means over others would not compare."""
    out = {}
    for key, lines in grouped(scans).items():
        heads = defaultdict(set)
        for line in lines:
            heads[line["seed"]].add(line["head"])
        if whole := [line for line in lines if heads[line["seed"]] >= set(HEADS)]:
            out[key] = whole
    return out


def table_of_heads(scans: list[dict]) -> str:
    rows = []
    for key, lines in complete(scans).items():
        heads = by_head(lines, number("average_precision"))
        mean, half = mean_and_interval(heads.values())
        seeds = len({line["seed"] for line in lines})
        rows.append([name_of(key), str(seeds), *(show(heads[head]) for head in HEADS), f"{show(mean)} ± {show(half)}"])
    return markdown_table(["contender, data, cohort", "seeds", *HEADS, "mean"], rows)


def table_of_one(runs: list[dict]) -> str:
    """Return means over seeds on the head that all contenders are scored on, and what they cost, the best first."""
    found = grouped(row for row in runs if (row["heads"], row["cohort"]) == (ONE_HEAD, cohort(runs)))
    rows = []
    for key, lines in found.items():
        known, left_out, seconds, memory = (
            float(np.mean([float(line[column]) for line in lines]))
            for column in (*KNOWN_AND_LEFT_OUT, "training_seconds", "training_gb")
        )
        weights = "–" if lines[0]["parameters"] == "0" else lines[0]["parameters"]
        name = name_of(key).removesuffix(f", {key[4]}")
        rows.append([name, len(lines), show(left_out), show(known), weights, show(seconds / 60, 0), show(memory, 1)])
    rows = [[str(cell) for cell in row] for row in sorted(rows, key=lambda row: row[2], reverse=True)]
    header = [
        "contender, data",
        "seeds",
        "average precision",
        "on known heads",
        "parameters",
        "minutes a training",
        "GB",
    ]
    return markdown_table(header, rows)


def runs_on_one(runs: list[dict]) -> list[dict]:
    """Return runs that were scored on that head, on the data and cohort of what ships."""
    whose = cohort(runs)
    return [row for row in runs if (row["heads"], row["data"], row["cohort"]) == (ONE_HEAD, SHIPPED[1], whose)]


def by_rates(runs: list[dict]) -> dict[tuple[str, int], dict[float, dict]]:
    """Return runs of seed 0 by contender and steps, then by learning rate."""
    found = defaultdict(dict)
    for row in runs_on_one(runs):
        if row["seed"] == "0":
            found[row["contender"], int(row["steps"])][rate_of(row)] = row
    return dict(sorted(found.items()))


def chosen(by_rate: dict[float, dict]) -> float:
    """Return the learning rate that is best on known heads."""
    return max(by_rate, key=lambda rate: float(by_rate[rate]["choice_average_precision"]))


def table_of_rates(runs: list[dict]) -> str:
    """Return what was trained at several learning rates, otherwise alike; bold is the best on known heads."""
    found = {key: by_rate for key, by_rate in by_rates(runs).items() if len(by_rate) > 1}
    rates = sorted({rate for by_rate in found.values() for rate in by_rate})
    rows = []
    for (contender, steps), by_rate in found.items():
        cells = []
        for rate in rates:
            known, left_out = (float(by_rate.get(rate, {}).get(key, math.nan)) for key in KNOWN_AND_LEFT_OUT)
            cell = f"{show(known)} ({show(left_out)})" if rate in by_rate else "–"
            cells.append(f"**{cell}**" if rate == chosen(by_rate) else cell)
        rows.append([f"{contender}, {steps} steps", *cells])
    return markdown_table(["contender", *(f"{rate:g}" for rate in rates)], rows)


def table_of_seeds(runs: list[dict]) -> str:
    """Return what was trained by three seeds or more."""
    rows = []
    for key, lines in grouped(runs_on_one(runs)).items():
        if len(lines) >= 3:
            known, left_out = ([float(line[column]) for line in lines] for column in KNOWN_AND_LEFT_OUT)
            each = ", ".join(f"{show(b)} ({show(a)})" for a, b in zip(known, left_out, strict=True))
            mean, half = mean_and_interval(left_out)
            rows.append([name_of(key), each, f"{show(mean)} ± {show(half)} ({show(mean_and_interval(known)[0])})"])
    return markdown_table(["contender, data, cohort", "each", "mean"], rows)


def rate_of(row: dict) -> float:
    """Return a run's learning rate; its own is that of its last file that has one, or else the bundle's."""
    if row["learning_rate"] != "own":
        return float(row["learning_rate"])
    files = [ROOT / "bundle/configs/train.yaml", *(CONFIGS / f"{name}.yaml" for name in row["contender"].split("+"))]
    rates = [(yaml.safe_load(file.read_text()) or {}).get("learning_rate") for file in files]
    return float([rate for rate in rates if rate is not None][-1])


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
        first, turned = views(lines)
        cells = [show(part.get(head, math.nan)) for head in FIRST_VIEWS for part in (first, turned)]
        rows.append([name_of(key), *cells])
    return markdown_table(
        ["contender, data, cohort", *(f"{h} {w}" for h in FIRST_VIEWS for w in ("first", "turned"))], rows
    )


def table_of_schemes(scans: list[dict]) -> str:
    schemes = {s: by_head([x for x in scans if x["scheme"] == s], number("average_precision")) for s in SCHEMES}
    rows = [[head, *(show(schemes[s].get(head, math.nan)) for s in SCHEMES)] for head in HEADS]
    rows.append(["mean", *(show(mean_and_interval(schemes[s].values())[0]) for s in SCHEMES)])
    return markdown_table(["head", *SCHEMES.values()], rows) if scans else ""


def table_of_thresholds(scans: list[dict]) -> str:
    rows = []
    for threshold in sorted({row["threshold"] for row in scans}, key=float):
        ours = [row for row in scans if row["threshold"] == threshold]
        healthy = by_head(ours, number("predicted_ml"), "healthy")
        scores = ("dice", "lesion_sensitivity", "lesion_precision")
        means = (show(mean_and_interval(by_head(ours, number(score)).values())[0]) for score in scores)
        most = max(healthy, key=healthy.get)
        rows.append([threshold, *means, f"{show(np.mean(list(healthy.values())), 1)} ({most}: {healthy[most]:.1f})"])
    header = ["threshold", "Dice", "lesions found", "found that are true", "ml in healthy heads"]
    return markdown_table(header, rows) if rows else ""


def summary(runs: list[dict], scans: list[dict], schemes: list[dict], thresholds: list[dict]) -> str:
    """Return what README and model card show: what was scored on all heads, on the data and cohort of what ships."""
    rows = []
    for key, lines in complete(scans).items():
        if key[1] != SHIPPED[1] or key[4] != cohort(scans):
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
    used = [row for row in shipped(thresholds) if float(row["threshold"]) == THRESHOLD]
    return "\n".join([markdown_table(header, rows), *([failures(used)] if used else [])])


def failures(scans: list[dict]) -> str:
    """Return in a sentence where it fails, at the threshold that it has in use."""

    def mean(column: str, kind: str = "implanted") -> float:
        return mean_and_interval(by_head(scans, number(column), kind).values())[0]

    found, faint, small = (f"{100 * mean(f'lesion_sensitivity{name}'):.0f} %" for name in ("", "_faint", "_small"))
    called = [float(row["predicted_ml"]) for row in scans if row["kind"] == "healthy"]
    return (
        f"At its threshold of {THRESHOLD:g}, `{SHIPPED[0]}` finds {found} of the lesions, {faint} of faint ones and "
        f"{small} of those below {SMALL} ml; {100 * mean('lesion_precision'):.0f} % of what it calls lesions are. "
        f"Dice is {mean('dice'):.2f}. In heads without any lesion it calls {mean('predicted_ml', 'healthy'):.1f} ml, "
        f"{min(called):.1f} to {max(called):.1f} by scanner and field of view.\n"
    )


# where tables stand between the two comments
PAGES = {"docs/study.md": tables, "README.md": summary, "bundle/docs/README.md": summary}

if __name__ == "__main__":
    main()
