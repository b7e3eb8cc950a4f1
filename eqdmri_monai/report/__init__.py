"""What goes beside a lesion map: a picture, and a record of how it was made."""

from eqdmri_monai.report.picture import colour_fa, picture
from eqdmri_monai.report.record import SaveReportd, sha256

__all__ = ["SaveReportd", "colour_fa", "picture", "sha256"]
