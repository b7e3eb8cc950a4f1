"""Errors on the command line: one sentence each."""

import logging
import sys
import warnings


def one_line_errors() -> None:
    """Let an error that ends the program print one sentence, that of its first cause, in place of a traceback.

    Unless logging is at level DEBUG, which keeps the traceback. For command lines; importing changes nothing.
    """

    def hook(kind: type[BaseException], error: BaseException, traceback) -> None:
        if issubclass(kind, KeyboardInterrupt) or logging.getLogger().isEnabledFor(logging.DEBUG):
            sys.__excepthook__(kind, error, traceback)
            return
        while error.__cause__ is not None:
            error = error.__cause__
        name = "" if isinstance(error, ValueError | FileNotFoundError) else f"{type(error).__name__}: "
        print(f"error: {name}{error}", file=sys.stderr)

    logging.getLogger("ignite").setLevel(logging.CRITICAL)  # it logs every error with a traceback of its own
    # MONAI's LoadImage tries every reader that it has, and says so of one for DICOM on a GPU.
    warnings.filterwarnings("ignore", "NvImgCodecPydicomReader")
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    sys.excepthook = hook
