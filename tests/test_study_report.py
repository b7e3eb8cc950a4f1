"""Tables of the study: right on a few lines, and those on the page are those of the CSV files."""

from pathlib import Path

import pytest
import study_report as report

ROOT = Path(__file__).parents[1]


CLASSES = ("faint", "medium", "strong", "small", "middle", "large")


@pytest.fixture
def scans():
    same = {"contender": "boosting", "data": "both", "left_out": "x", "seed": "0", "steps": "400", "auc": "0.9"}
    same |= {
        "learning_rate": "own",
        "cohort": "1a2b",
        "dice": "0.3",
        "lesion_sensitivity": "0.6",
        "lesion_precision": "0.5",
    }
    same |= {"calibration_error": "0.01", "predicted_ml": "2.5"}
    same |= {f"{what}_{name}": "0.5" for what in ("average_precision", "lesion_sensitivity") for name in CLASSES}
    rows = [
        ("elition", "v", "implanted", "0.2"),
        ("elition", "v", "implanted", "0.4"),
        ("siemens", "v", "implanted", "0.5"),
        ("toshiba", "dwi_toshiba12_rotated/ortho", "implanted", "0.6"),
        ("toshiba", "dwi_toshiba12_rotated/SAG30", "implanted", "0.4"),
        ("siemens", "v", "healthy", "nan"),
    ]
    return [
        same | {"head": head, "view": view, "kind": kind, "average_precision": value}
        for head, view, kind, value in rows
    ]


def test_a_head_counts_once(scans, monkeypatch):
    assert report.table_of_heads(scans) == ""  # no mean over some heads
    assert report.table_of_scores([], scans) == report.summary([], scans, [], []) == ""
    monkeypatch.setattr(report, "HEADS", ("elition", "siemens", "toshiba"))
    on_one_head = scans[0] | {"seed": "1", "average_precision": "0.9"}  # not that of the others: it does not count
    shown = report.table_of_heads([*scans, on_one_head])
    assert "| 1 | 0.300 | 0.500 | 0.500 | 0.433 ± 0.287 |" in shown  # t(2) · 0.1155 / √3
    assert "| 0.30 | 0.50 | 0.50 | 0.43 ± 0.29 | 0.300 | 0.010 | 2.5 |" in report.summary([], scans, [], [])
    assert "| 0.600 | 0.400 |" in report.table_of_turns(scans)
    schemes = [row | {"scheme": scheme} for row in scans for scheme in ("6", "signs")]
    assert "| siemens | 0.500 | – | – | – | 0.500 | – |" in report.table_of_schemes(schemes)
    assert "| mean | 0.433 | – | – | – | 0.433 | – |" in report.table_of_schemes(schemes)
    thresholds = [row | {"threshold": threshold} for row in scans for threshold in ("0.5", "0.1")]
    shown = report.table_of_thresholds(thresholds).splitlines()
    assert shown[2:] == [f"| {t} | 0.300 | 0.600 | 0.500 | 2.5 (siemens: 2.5) |" for t in ("0.1", "0.5")]
    assert "| 2.5 |" in report.table_of_scores([], scans)


def test_no_lines_give_no_tables():
    assert report.tables([], [], [], []) == "No run is finished yet.\n"


def test_a_figure_is_drawn(tmp_path):
    values = {"forest": {"elition": 0.5, "canon": 0.4}, "boosting": {"elition": 0.3}}
    report.figure_of_heads(values, "average precision", tmp_path / "heads.png")
    assert (tmp_path / "heads.png").stat().st_size > 1000


def test_pictures_are_of_the_heads_that_they_name(scans, monkeypatch):
    monkeypatch.setattr(report, "HEADS", ("elition", "siemens", "toshiba"))
    monkeypatch.setattr(report, "ONE_HEAD", "siemens")
    forest = [row | {"contender": "forest", "steps": "0"} for row in scans]
    other = [row | {"data": "share26", "average_precision": "0.1"} for row in forest]
    older = [row | {"cohort": "0a0a", "average_precision": "0.7"} for row in scans]
    schemes = [row | {"scheme": "6"} for row in forest]
    shown = report.pictures([], [*older, *scans, *other, *forest], schemes)
    means = {"elition": pytest.approx(0.3), "siemens": 0.5, "toshiba": 0.5}
    assert shown["heads"][0] == {"boosting": means, "forest": means}
    assert shown["data"][0]["both"] == means
    assert shown["data"][0]["share26"]["siemens"] == 0.1
    assert list(shown["fewer"][0].items()) == [
        ("26 % of the scans", {"siemens": 0.1}),
        ("all scans", {"siemens": 0.5}),
    ]
    assert shown["turned"][0]["forest"] == {"toshiba": 0.6}
    assert shown["turned"][0]["forest, turned"] == {"toshiba": 0.4}
    assert shown["schemes"][0]["6"] == means


@pytest.fixture
def run(monkeypatch):
    """A finished run on the head that all contenders are scored on; as it is, its learning rate is 0.002."""
    monkeypatch.setattr(report, "ONE_HEAD", "siemens")
    run = {"contender": "maps_unet", "data": "both", "steps": "9", "learning_rate": "own", "cohort": "1a", "seed": "0"}
    return run | {"heads": "siemens", "choice_average_precision": "0.2", "average_precision": "0.1"}


def test_a_picture_shows_the_learning_rate_that_is_best_on_known_heads(run):
    worse = run | {"learning_rate": "0.01", "choice_average_precision": "0.1", "average_precision": "0.9"}
    again = run | {"seed": "1", "average_precision": "0.2"}
    short = run | {"contender": "pqnet_short", "learning_rate": "0.1", "average_precision": "0.3"}
    better = short | {"learning_rate": "0.2", "choice_average_precision": "0.3", "average_precision": "0.01"}
    shorts = [short, better, short | {"seed": "1"}]  # several seeds are shown besides
    forest = run | {"contender": "forest", "steps": "0", "average_precision": "0.05"}
    older = forest | {"cohort": "0a"}
    shown = report.pictures([older, run, worse, again, *shorts, forest], [], [])
    assert list(shown["networks"][0].items()) == [
        ("pqnet_short, 9 steps, rate 0.1", {"seed 0": 0.3, "seed 1": 0.3}),
        ("maps_unet, 9 steps", {"seed 0": 0.1, "seed 1": 0.2}),
        ("forest", {"seed 0": 0.05}),
        ("pqnet_short, 9 steps, rate 0.2", {"seed 0": 0.01}),
    ]
    assert list(shown["architectures"][0]) == ["pqnet_short, 9 steps, rate 0.1", "pqnet_short, 9 steps, rate 0.2"]


def test_where_the_shipped_one_fails_is_said_of_its_own_lines(scans, monkeypatch):
    monkeypatch.setattr(report, "HEADS", ("elition", "siemens", "toshiba"))
    assert "finds" not in report.summary([], scans, [], [])
    forest = [row | {"contender": "forest", "threshold": str(report.THRESHOLD)} for row in scans]
    said = report.summary([], scans, [], [*scans_at(scans, 0.1), *forest])
    assert "`forest` finds 60 % of the lesions, 50 % of faint ones and 50 % of those below 0.2 ml; 50 % of what" in said
    assert "it calls 2.5 ml, 2.5 to 2.5 by scanner" in said
    assert "finds" not in report.summary([], scans, [], scans_at(forest, 0.1))


def test_what_was_trained_without_one_scanner_is_shown_with_its_cost(run):
    run |= {"parameters": "7", "training_seconds": "90", "training_gb": "1.25"}
    again = run | {"seed": "1", "average_precision": "0.4", "training_seconds": "150"}
    forest = run | {
        "contender": "forest",
        "data": "heads2",
        "steps": "0",
        "average_precision": "0.5",
        "parameters": "0",
    }
    elsewhere = run | {"heads": "canon toshiba"}
    assert report.table_of_one([run, again, elsewhere, forest]).splitlines()[2:] == [
        "| forest, heads2 | 1 | 0.500 | 0.200 | – | 2 | 1.2 |",
        "| maps_unet, both, 9 steps | 2 | 0.250 | 0.200 | 7 | 2 | 1.2 |",
    ]


def test_learning_rates_and_seeds_are_shown_where_there_are_several(run):
    better = run | {"learning_rate": "0.01", "choice_average_precision": "0.3"}
    longer = run | {"learning_rate": "0.01", "steps": "99"}  # nothing to compare it with
    elsewhere = run | {"learning_rate": "0.1", "heads": "canon toshiba"}
    others = [run | {"seed": seed, "average_precision": value} for seed, value in (("1", "0.2"), ("2", "0.3"))]
    shown = report.table_of_rates([run, better, longer, elsewhere, *others]).splitlines()
    assert shown[0] == "| contender | 0.002 | 0.01 |"
    assert shown[2:] == ["| maps_unet, 9 steps | 0.200 (0.100) | **0.300 (0.100)** |"]
    shown = report.table_of_seeds([run, better, longer, elsewhere, *others]).splitlines()
    each = "0.100 (0.200), 0.200 (0.200), 0.300 (0.200)"
    assert shown[2:] == [f"| maps_unet, both, 9 steps, 1a | {each} | 0.200 ± 0.248 (0.200) |"]  # t(2) · 0.1 / √3
    assert report.table_of_rates([run]) == report.table_of_seeds([run, better, *others[:1]]) == ""


def test_a_learning_rate_is_that_of_the_last_file_that_has_one():
    own = {"learning_rate": "own"}
    for name in ("pqnet", "pqnet_short+degree_2"):
        assert report.rate_of(own | {"contender": name}) == 0.005  # of bundle/configs/train.yaml
    assert report.rate_of(own | {"contender": "pqnet_short+paper_best"}) == 0.002
    assert report.rate_of({"contender": "pqnet", "learning_rate": "0.1"}) == 0.1


def scans_at(scans: list[dict], threshold: float) -> list[dict]:
    return [row | {"threshold": str(threshold), "predicted_ml": "99"} for row in scans]


@pytest.mark.parametrize("name", ["docs/study.md", "README.md", "bundle/docs/README.md"])
def test_the_pages_tables_are_those_of_the_csv_files(name):
    page = (ROOT / name).read_text()
    results = [report.read_rows(ROOT / "results" / "study" / f"{name}.csv") for name in report.FILES]
    shown = page.split(report.BEGIN)[1].split(report.END)[0].strip()
    assert shown == report.PAGES[name](*results).strip()


def test_each_finished_run_has_one_line():
    rows = report.read_rows(ROOT / "results" / "study" / "runs.csv")
    keys = [
        tuple(row[k] for k in ("contender", "data", "left_out", "seed", "steps", "learning_rate", "cohort"))
        for row in rows
    ]
    assert len(set(keys)) == len(keys)
