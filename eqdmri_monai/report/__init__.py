"""What goes beside a lesion map: a picture, a record of how it was made, and both as DICOM."""

from eqdmri_monai.report.dicom import SaveDicomd
from eqdmri_monai.report.picture import colour_fa, picture
from eqdmri_monai.report.record import SaveReportd, sha256

__all__ = ["SaveDicomd", "SaveReportd", "colour_fa", "picture", "sha256"]
