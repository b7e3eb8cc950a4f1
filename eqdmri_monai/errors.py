"""Errors on the command line: one sentence each."""

import logging
import sys
import warnings

import torch


def first_cause(error: BaseException) -> BaseException:
    """Return what lies below the RuntimeErrors that MONAI wraps errors in."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def sentence(error: BaseException) -> str:
    """Return the first cause of an error as one line, with its kind unless it is a refusal."""
    error = first_cause(error)
    said = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in said:
        return "not enough memory; choose smaller windows, such as --window [64,64,64]"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return said if isinstance(error, ValueError | FileNotFoundError) else f"{type(error).__name__}: {said}"


def one_line_errors() -> None:
    """Let an error that ends the program print one sentence, that of its first cause, in place of a traceback.

    Unless logging is at level DEBUG, which keeps the traceback. For command lines; importing changes nothing.
    """

    def hook(kind: type[BaseException], error: BaseException, traceback) -> None:
        if logging.getLogger().isEnabledFor(logging.DEBUG):
            sys.__excepthook__(kind, error, traceback)
        elif issubclass(kind, KeyboardInterrupt):
            print("\ninterrupted", file=sys.stderr)
        else:
            print(f"error: {sentence(error)}", file=sys.stderr)

    logging.getLogger("ignite").setLevel(logging.CRITICAL)  # it logs every error with a traceback of its own
    # MONAI's LoadImage tries every reader that it has, and says so of one for DICOM on a GPU.
    warnings.filterwarnings("ignore", "NvImgCodecPydicomReader")
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    sys.excepthook = hook
