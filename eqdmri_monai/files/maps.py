"""MONAI's writer of NIfTI maps, whole or not at all."""

from pathlib import Path

from monai.data import NibabelWriter

from eqdmri_monai.files.writing import written_whole


class WholeNibabelWriter(NibabelWriter):
    """MONAI's NIfTI writer for `SaveImaged`; the file appears under its name only when it is whole."""

    def write(self, filename: str | Path, verbose: bool = False, **kwargs) -> None:
        """See `monai.data.NibabelWriter.write`."""
        with written_whole(filename) as part:
            super().write(part, verbose=verbose, **kwargs)
