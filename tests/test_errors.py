import logging
import subprocess
import sys


def test_an_error_that_ends_the_program_is_one_sentence():
    code = """
from eqdmri_monai.errors import one_line_errors
one_line_errors()
try:
    raise ValueError("scan.nii: no b0; add one")
except ValueError as e:
    raise RuntimeError("applying transform") from e
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "error: scan.nii: no b0; add one"
    assert "Traceback" not in done.stderr
    assert logging.getLogger("ignite").level == logging.NOTSET  # nothing was changed here
