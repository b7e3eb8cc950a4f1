import pytest

from eqdmri_monai.files.writing import output_folder, written_whole


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
