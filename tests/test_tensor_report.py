"""Tables of tensors: right on a few lines, and those on the page are those of the CSV files."""

from pathlib import Path

import numpy as np
import pytest
import tensor_report as report

ROOT = Path(__file__).parents[1]


def test_a_head_counts_once_and_some_heads_have_no_mean():
    rows = [
        {"contender": contender, "head": head} | dict.fromkeys(report.SCORES, value)
        for contender, head, value in (
            ("wls", "elition", "1"), ("wls", "elition", "3"), ("wls", "canon", "4"), ("net", "canon", "5")
        )
    ]  # fmt: skip
    scores = report.table_of_scores(rows, ("elition", "canon"))
    assert "| wls | 3.00 | 3.00 | 3.0 | 3.000 |" in scores
    assert "net" not in scores
    assert report.table_of_heads(rows, "angle").endswith("| wls | 2.0 | 4.0 |\n| net | – | 5.0 |\n")


def test_noise_of_the_reference_is_taken_off():
    rng = np.random.default_rng(0)
    truth, noise = rng.normal(size=20000), rng.normal(size=(3, 20000))
    plain, reference, better = truth + noise[0], truth + 0.5 * noise[1], truth + 0.3 * noise[2]
    for contender, own in ((plain, 1.0), (better, 0.3), (truth, 0.0)):
        found = report.without_reference_noise(
            {
                "square_error": ((contender - reference) ** 2).sum(), "square": (contender**2).sum(),
                "square_error_plain": ((plain - reference) ** 2).sum(), "noise_share": 0.25 / 1.25,
                "plain_with_reference": (plain * reference).sum(),
            }
        )  # fmt: skip
        assert float(found["own_error"]) == pytest.approx(own, abs=0.1)
        assert float(found["length"]) == pytest.approx((1 + own**2) ** 0.5, rel=0.05)


@pytest.mark.parametrize("page", ["docs/tensors.md", "README.md", "bundle/docs/README.md"])
def test_the_pages_tables_are_those_of_the_csv_files(page):
    shown = (ROOT / page).read_text().split(report.BEGIN)[1].split(report.END)[0].strip()
    assert shown == report.PAGES[page](ROOT / "results" / "tensors").strip()
