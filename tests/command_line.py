"""`monai.bundle run` in this process, as its command line would run it."""

import runpy
import sys
import warnings

import monai.bundle
import pytest


class CommandLine:
    """Run commands one after another; nothing that a command sets in the interpreter is left behind."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
        self.monkeypatch, self.capfd = monkeypatch, capfd

    def __call__(self, *words: object) -> tuple[int, str]:
        """Return the exit code, and the last line of what was said: on stderr where the code is not 0."""
        argv = [monai.bundle.__file__.replace("__init__", "__main__"), "run", *map(str, words)]
        self.capfd.readouterr()
        with self.monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            patch.setattr(sys, "argv", argv)
            patch.setattr(sys, "path", list(sys.path))
            patch.setattr(sys, "excepthook", sys.excepthook)
            patch.setattr(warnings, "showwarning", warnings.showwarning)
            code = 0
            try:
                runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
            except SystemExit as e:
                code = int(e.code or 0)
            except Exception as e:
                sys.excepthook(type(e), e, e.__traceback__)
                code = 1
        out, err = self.capfd.readouterr()
        assert "Traceback" not in err, err
        return code, ((err if code else out).strip().splitlines() or [""])[-1]
