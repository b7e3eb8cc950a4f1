from matplotlib.figure import Figure

from eqdmri_monai.files.figures import save_figure


def test_a_figure_is_a_png_in_a_new_folder(tmp_path):
    save_figure(tmp_path / "new" / "figure.png", Figure(figsize=(1, 1)))
    assert (tmp_path / "new" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "new").iterdir())) == 1
