import multiprocessing

import pytest

from eqdmri_monai.report.summary import COLUMNS, Summary


def test_rows_are_replaced_and_in_the_order_of_names(tmp_path):
    table = Summary(tmp_path / "summary.csv")
    table.put("b", {"error": 'x: a, "b"\n'})
    table.put("a/1", {"lesions": 2, "lesion_ml": 0.5, "brain_ml": 1200.1, "seconds": 3.0, "warnings": ["one", "two"]})
    assert (tmp_path / "summary.csv").read_text().splitlines()[:2] == [
        "scan,lesions,lesion_ml,brain_ml,seconds,warnings,error", "a/1,2,0.5,1200.1,3.0,one; two,",
    ]  # fmt: skip
    table.put("b", {"lesions": 0, "sha256": "left out"})
    assert Summary(tmp_path / "summary.csv").rows()["b"] == dict.fromkeys(COLUMNS, "") | {"scan": "b", "lesions": "0"}
    assert list(table.rows()) == ["a/1", "b"]


def test_names_that_are_no_text_come_back(tmp_path):
    table = Summary(tmp_path / "summary.csv")
    for name in ("\udcff", "試験 a,b", 'q"q'):
        table.put(name, {})
    assert set(table.rows()) == {"\udcff", "試験 a,b", 'q"q'}


def test_a_file_that_is_another_table_is_left_alone(tmp_path):
    (tmp_path / "summary.csv").write_text("subject,age\n1,2\n")
    with pytest.raises(ValueError, match=r"summary.csv: not a table with the columns scan, lesions, .*; move it away"):
        Summary(tmp_path / "summary.csv")
    assert (tmp_path / "summary.csv").read_text() == "subject,age\n1,2\n"


def put_many(path, process):
    table = Summary(path)
    for k in range(20):
        table.put(f"{process}-{k}", {"lesions": k})


def test_no_row_is_lost_between_processes(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=put_many, args=(tmp_path / "summary.csv", p)) for p in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    rows = Summary(tmp_path / "summary.csv").rows()
    assert {name: row["lesions"] for name, row in rows.items()} == {
        f"{p}-{k}": str(k) for p in range(3) for k in range(20)
    }
