"""What goes beside maps: a picture, a page, a record of how it was made, and results as DICOM."""

from eqdmri_monai.report.bundles import SaveTractogramd
from eqdmri_monai.report.checks import CheckGradientsd
from eqdmri_monai.report.dicom import SaveDicomd
from eqdmri_monai.report.evaluation import SaveScores
from eqdmri_monai.report.lesion_report import SaveReportd
from eqdmri_monai.report.page import SaveIndex, SavePaged, write_index, write_page
from eqdmri_monai.report.picture import colour_fa, picture
from eqdmri_monai.report.record import SaveRecordd, sha256, write_record
from eqdmri_monai.report.sidecars import SaveSidecarsd
from eqdmri_monai.report.tensor_report import SaveTensorReportd

__all__ = [
    "CheckGradientsd",
    "SaveDicomd",
    "SaveIndex",
    "SavePaged",
    "SaveRecordd",
    "SaveReportd",
    "SaveScores",
    "SaveSidecarsd",
    "SaveTensorReportd",
    "SaveTractogramd",
    "colour_fa",
    "picture",
    "sha256",
    "write_index",
    "write_page",
    "write_record",
]
