"""MONAI's writer of NIfTI maps, whole or not at all, on the grid that they have."""

from pathlib import Path

from monai.data import NibabelWriter

from eqdmri_monai.files.writing import written_whole


class WriteFault(BaseException):
    """An OSError, such as of a full disk, on its way through MONAI's `SaveImage`.

    That takes every Exception of a writer for a sign to try another one, and says at last that none is installed.

    Parameters
    ----------
    error : OSError
    """

    def __init__(self, error: OSError):
        super().__init__(*error.args)
        self.error = error


class WholeNibabelWriter(NibabelWriter):
    """MONAI's NIfTI writer for `SaveImaged`; the file appears under its name only when it is whole.

    It does not resample (``resample: false``): a map has the grid of its scan already.
    """

    def set_data_array(self, data_array, channel_dim: int | None = 0, squeeze_end_dims: bool = True, **kwargs) -> None:
        """See `monai.data.NibabelWriter.set_data_array`; a scan of one slice keeps its third axis."""
        super().set_data_array(data_array, channel_dim, squeeze_end_dims=False, **kwargs)
        if squeeze_end_dims and self.data_obj.shape[-1] == 1:
            self.data_obj = self.data_obj[..., 0]

    def set_metadata(self, meta_dict, resample: bool = False, **options) -> None:
        """Take the affine as it is.

        MONAI 1.6.1 resamples even then, and loses the third axis on its way (Project-MONAI/MONAI issue #9068:
        `ImageWriter.resample_if_needed` sets the affine before the channel axis is there): it cannot write sagittal
        and coronal scans, nor single slices.

        Raises
        ------
        ValueError
            When it is to resample.
        """
        if resample:
            raise ValueError("WholeNibabelWriter does not resample; say resample: false")
        _, self.affine, _ = self.get_meta_info(meta_dict)

    def write(self, filename: str | Path, verbose: bool = False, **kwargs) -> None:
        """See `monai.data.NibabelWriter.write`.

        Raises
        ------
        WriteFault
            When the file cannot be written; `transforms.SaveTogether` makes an OSError of it again.
        """
        try:
            with written_whole(filename) as part:
                super().write(part, verbose=verbose, **kwargs)
        except OSError as e:
            raise WriteFault(e) from e
