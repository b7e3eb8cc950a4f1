import os
import signal
import subprocess
import sys
import time

import pytest

from eqdmri_monai.files.writing import (
    DEAD_AFTER,
    append_row,
    output_folder,
    part_of,
    put_together,
    read_rows,
    replace_part,
    written_whole,
)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="choose another output folder"):
        output_folder(tmp_path / "file" / "results")


def test_nothing_is_left_where_writing_fails(tmp_path):
    def fail():
        with written_whole(tmp_path / "a.txt") as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def killed_while_writing(path) -> None:
    code = (
        "import os, sys\n"
        "from eqdmri_monai.files.writing import written_whole\n"
        "with written_whole(sys.argv[1]) as part:\n"
        "    part.write_text('half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -signal.SIGKILL


def test_a_kill_while_writing_keeps_the_old_file_and_the_next_run_clears_up(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    killed_while_writing(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    output_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_files_that_belong_together_are_put_in_place_after_a_kill(tmp_path):
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from eqdmri_monai.files import writing\n"
        "folder, put = Path(sys.argv[1]), writing.put_in_place\n"
        "part = writing.part_of(folder / 'scan')\n"
        "part.mkdir()\n"
        "names = ('record', 'map')\n"
        "[(part / name).write_text('new') for name in names]\n"
        "writing.put_in_place = lambda *paths: (put(*paths), os.kill(os.getpid(), 9))\n"
        "writing.put_together(part, {part / name: folder / 'sub' / name for name in names})\n"
    )
    (tmp_path / "sub").mkdir()
    for name in ("record", "map"):
        (tmp_path / "sub" / name).write_text("old")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["record"]
    output_folder(tmp_path)
    assert {path.name: path.read_text() for path in (tmp_path / "sub").iterdir()} == {"record": "new", "map": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["sub"]


def test_a_failure_to_put_files_in_place_leaves_no_folder(tmp_path):
    part = part_of(tmp_path / "scan")
    part.mkdir()
    (part / "map").write_text("new")
    (tmp_path / "map").mkdir()
    with pytest.raises(OSError, match="directory"):
        put_together(part, {part / "map": tmp_path / "map"})
    assert [path.name for path in tmp_path.iterdir()] == ["map"]


def test_what_another_process_is_writing_stays(tmp_path):
    mine, folder = part_of(tmp_path / "mine.txt"), part_of(tmp_path / "folder")
    parent = tmp_path / mine.name.replace(str(os.getpid()), str(os.getppid()))
    other_host, unknown = tmp_path / ".part-1@elsewhere@a.txt", tmp_path / ".part-17-a.txt"
    folder.mkdir()
    for part in (mine, parent, other_host, unknown, folder / "a.txt"):
        part.touch()
    output_folder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {p.name for p in (mine, parent, other_host, unknown, folder)}
    for part in (other_host, unknown, folder):
        os.utime(part, 2 * (time.time() - DEAD_AFTER - 1,))
    output_folder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {mine.name, parent.name}


def test_long_names_can_be_written(tmp_path):
    with written_whole(tmp_path / ("a" * 251 + ".txt")) as part:
        part.write_text("whole")
    assert [len(path.name) for path in tmp_path.iterdir()] == [255]


def test_rows_are_added_to_a_table_of_the_same_columns(tmp_path):
    table = tmp_path / "new" / "table.csv"
    append_row(table, {"name": "a, b", "value": 1})
    append_row(table, {"name": "c", "value": ""})
    assert read_rows(table) == [{"name": "a, b", "value": "1"}, {"name": "c", "value": ""}]
    with pytest.raises(ValueError, match="name another table"):
        append_row(table, {"name": "d"})


def test_a_part_of_a_page_is_replaced_and_the_rest_stays(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("first\n<begin>\nold\n<end>\nlast\n<end>\n")
    for part in ("new\n", "newer"):
        replace_part(page, "<begin>", "<end>", part)
    assert page.read_text() == "first\n<begin>\n\nnewer\n\n<end>\nlast\n<end>\n"
