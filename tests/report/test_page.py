"""The page of a scan and the index: what they show, and that a browser runs them without a word."""

import base64
import gzip
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from eqdmri_monai.report import write_index, write_page
from eqdmri_monai.simulate import make_phantom, single_shell

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium to open the page with (Debian: apt install chromium)"
)


@pytest.fixture(scope="module")
def phantom():
    table = single_shell(8, 1000.0, np.random.default_rng(0))
    return make_phantom(0, table, shape=(24, 28, 20), spacing=(6, 6, 7), lesions=6)


def write(path: Path, phantom, affine=None, dwi=None, lesion=None, brain=None, **more) -> Path:
    lesion = phantom.lesion if lesion is None else lesion
    return write_page(
        path, phantom.dwi if dwi is None else dwi, phantom.table, phantom.affine if affine is None else affine,
        0.9 * lesion.astype(np.float32), phantom.brain if brain is None else brain, threshold=0.5,
        record={"input": "scan.nii.gz", "threshold": 0.5, "packages": {"torch": "2"}}, **more,
    )  # fmt: skip


def data(path: Path) -> dict:
    return json.loads(re.search(r'type="application/json">(.*?)</script>', path.read_text(encoding="utf-8"), re.S)[1])


def volume(page: dict, name: str) -> np.ndarray:
    values = np.frombuffer(gzip.decompress(base64.b64decode(page["volumes"][name])), np.uint8)
    return values.reshape((-1, *page["shape"]), order="F").squeeze()


def test_a_page_holds_the_maps_and_the_lesions(tmp_path, phantom):
    page = data(write(tmp_path / "page.html", phantom))
    orientation = nib.orientations.io_orientation(phantom.affine)
    turn = lambda a: nib.orientations.apply_orientation(a, orientation)  # noqa: E731
    lesion, brain = turn((0.9 * phantom.lesion > 0.5) & (phantom.brain > 0.5)), turn(phantom.brain > 0.5)
    np.testing.assert_array_equal(volume(page, "lesion"), 255 * lesion)
    np.testing.assert_array_equal(volume(page, "brain"), 255 * brain)
    assert volume(page, "colour").shape == (3, *phantom.brain.shape)
    ml = abs(np.linalg.det(phantom.affine[:3, :3])) * 1e-3
    assert sum(one["ml"] for one in page["lesions"]) == pytest.approx(lesion.sum() * ml, rel=1e-3)
    assert all(lesion[tuple(one["voxel"])] for one in page["lesions"])
    assert [shell["b"] for shell in page["shells"]] == [1000]
    assert len(page["shells"][0]["directions"]) == 8


@pytest.mark.parametrize("axes", ["LPS", "PIR", "ASL"])
def test_a_page_does_not_depend_on_how_a_scan_is_stored(tmp_path, phantom, axes):
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(phantom.affine), nib.orientations.axcodes2ornt(axes)
    )
    stored = [nib.orientations.apply_orientation(a, turn) for a in (phantom.dwi, phantom.lesion, phantom.brain)]
    affine = phantom.affine @ nib.orientations.inv_ornt_aff(turn, phantom.brain.shape)
    one = data(write(tmp_path / "one.html", phantom))
    two = data(write(tmp_path / "two.html", phantom, affine, *stored))
    for name in one["volumes"]:
        assert np.abs(volume(one, name).astype(int) - volume(two, name)).max() <= 1
    np.testing.assert_allclose(one["affine"], two["affine"], atol=1e-4)
    assert [x["ml"] for x in one["lesions"]] == [x["ml"] for x in two["lesions"]]


def test_a_page_needs_no_network_and_text_cannot_become_code(tmp_path, phantom):
    path = write(tmp_path / "page.html", phantom, warnings=["</script><script>alert(1)</script>{{data}}"])
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"https?://|src=|@import|<link", text)
    assert text.count("<script") == 2
    assert data(path)["warnings"] == ["</script><script>alert(1)</script>{{data}}"]


def test_the_index_lists_all_records_below_a_folder(tmp_path):
    for name, ml in (("a", 2.0), ("sub-01/b", 1.0)):
        path = tmp_path / f"{name}_report.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"lesion_ml": ml, "lesions": 3, "volumes_per_b_value": {"0": 1, "1000": 6}}))
    (tmp_path / "a_report.html").touch()
    rows = data(write_index(tmp_path))
    assert [row["scan"] for row in rows] == ["a", "sub-01/b"]
    assert [row["page"] for row in rows] == ["a_report.html", None]
    assert [row["volumes"] for row in rows] == [7, 7]
    assert rows[0]["b"] == "0 1000"


def opened(path: Path, script: str) -> dict:
    """Open a copy of a page in a browser, run a script in it, and return what it wrote and all errors."""
    text = path.read_text(encoding="utf-8")
    watch = """<script>
      window.said = [];
      console.warn = console.error = (...words) => said.push(words.join(" "));
      addEventListener("error", e => said.push(e.message));
      addEventListener("unhandledrejection", e => said.push(String(e.reason)));
    </script>"""
    act = f"""<script>(async () => {{
      const pause = () => new Promise(resolve => setTimeout(resolve, 20));
      const wait = async test => {{ for (let k = 0; k < 200 && !test(); k++) await pause(); }};
      const result = {{}};
      try {{ {script} }} catch (e) {{ said.push(String(e)); }}
      const out = document.createElement("pre");
      out.id = "out";
      out.textContent = JSON.stringify({{ result, said }});
      document.body.append(out);
    }})();</script>"""
    copy = path.with_name("opened.html")
    text = text.replace("<title>", watch + "<title>", 1).replace("</body>", act + "</body>")
    copy.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--host-resolver-rules=MAP * ~NOTFOUND",
         f"--user-data-dir={path.parent / 'browser'}", "--virtual-time-budget=10000", "--dump-dom", copy.as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    return json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.S)[1]))


@browser
def test_a_browser_draws_the_page_and_its_sliders_move_it(tmp_path, phantom):
    path = write(tmp_path / "page.html", phantom, warnings=["one thing"])
    seen = opened(
        path,
        """
        await wait(() => document.body.dataset.ready);
        const canvas = document.querySelector(".plane canvas"), slider = document.querySelector("figure input");
        const pixels = () => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        const sum = () => pixels().reduce((a, b) => a + b, 0);
        const set = (e, value) => { e.value = value; e.dispatchEvent(new Event("input")); };
        result.first = sum();
        set(slider, 2); result.low = sum(); result.caption = document.querySelector("figcaption").textContent;
        const row = document.querySelectorAll("#lesions tbody tr")[0];
        row.click(); result.back = sum(); result.here = row.className;
        set(document.getElementById("opacity"), 0); result.bare = sum();
        for (const name of ["fa", "colour"]) { set(document.getElementById("background"), name); result[name] = sum(); }
        result.planes = document.querySelectorAll(".plane canvas").length;
        result.spheres = document.querySelectorAll("#shells canvas").length;
        result.warning = document.querySelector(".warnings li").textContent;
        """,
    )
    assert seen["said"] == []
    result = seen["result"]
    assert result["first"] == result["back"]  # the page opens at the largest lesion
    assert len({result[key] for key in ("first", "low", "bare", "fa", "colour")}) == 5
    assert result["caption"] == "axial, slice 3 of 20"
    assert result["here"] == "here"
    assert (result["planes"], result["spheres"], result["warning"]) == (3, 1, "one thing")


@browser
def test_a_page_without_lesions_opens_too(tmp_path, phantom):
    path = write(tmp_path / "page.html", phantom, lesion=0 * phantom.lesion)
    seen = opened(
        path, "await wait(() => document.body.dataset.ready); result.text = document.body.textContent.slice(0, 9999);"
    )
    assert seen["said"] == []
    assert "No voxel is above the threshold" in seen["result"]["text"]


@browser
def test_a_click_on_a_heading_sorts_the_index(tmp_path):
    for name, ml in (("a", 2.0), ("b", 10.0), ("c", 3.0)):
        record = {"lesion_ml": ml, "lesions": 3, "volumes_per_b_value": {"0": 1, "1000": 6}}
        (tmp_path / f"{name}_report.json").write_text(json.dumps(record))
    seen = opened(
        write_index(tmp_path),
        """
        const names = () => [...document.querySelectorAll("tbody tr")].map(r => r.cells[0].textContent).join("");
        const head = document.querySelectorAll("th")[2];
        result.first = names(); head.click(); result.up = names(); head.click(); result.down = names();
        """,
    )
    assert seen["said"] == []
    assert seen["result"] == {"first": "abc", "up": "acb", "down": "bca"}
