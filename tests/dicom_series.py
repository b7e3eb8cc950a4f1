"""Write a diffusion scan as a classic DICOM series: one file a slice, tags of the standard alone."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from eqdmri_monai.gradients import GradientTable

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])
PATIENT = {"PatientName": "Doe^Jane", "PatientID": "ID4711", "PatientBirthDate": "19700101", "PatientSex": "F"}
IDENTITY = ("Doe", "Jane", "ID4711", "19700101", "House", "20200102")


def write_series(
    folder: Path,
    dwi: np.ndarray,
    affine: np.ndarray,
    table: GradientTable | None,
    *,
    number: int = 5,
    study: str | None = None,
    image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "DIFFUSION", "NONE"),
    modality: str = "MR",
) -> list[Path]:
    """Write (X, Y, Z, Q) integers, Q after Z in the instance numbers; table None writes no diffusion tags."""
    folder.mkdir(parents=True, exist_ok=True)
    study = study or generate_uid(entropy_srcs=["study"])
    series, frame = generate_uid(entropy_srcs=[study, str(number)]), generate_uid(entropy_srcs=[study])
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axes = RAS_TO_LPS @ (affine[:3, :3] / spacing)
    paths = []
    for q in range(dwi.shape[3]):
        for k in range(dwi.shape[2]):
            d = Dataset()
            d.file_meta = FileMetaDataset()
            d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID = MRImageStorage
            d.SOPInstanceUID = generate_uid(entropy_srcs=[series, str(q), str(k)])
            d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID
            for key, value in PATIENT.items():
                setattr(d, key, value)
            d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = study, series, frame
            d.StudyDate = d.SeriesDate = d.ContentDate = "20200102"
            d.StudyTime = d.SeriesTime = d.ContentTime = "101112"
            d.AccessionNumber, d.ReferringPhysicianName, d.StudyID = "A1", "House^Greg", "1"
            d.Modality, d.Manufacturer, d.ImageType = modality, "TOSHIBA_MEC", list(image_type)
            d.PatientPosition, d.MRAcquisitionType, d.ScanningSequence = "HFS", "2D", "EP"
            d.SequenceVariant, d.ScanOptions, d.EchoTime, d.RepetitionTime = "SK", "FS", "80", "4000"
            d.MagneticFieldStrength, d.FlipAngle, d.EchoTrainLength = "3", "90", "1"
            d.SeriesNumber, d.AcquisitionNumber, d.InstanceNumber = number, 1, 1 + k + dwi.shape[2] * q
            d.SeriesDescription = "DTI"
            d.ImagePositionPatient = [round(float(v), 6) for v in RAS_TO_LPS @ (affine @ [0, 0, k, 1])[:3]]
            d.ImageOrientationPatient = [round(float(v), 9) for v in axes[:, :2].T.flatten()]
            d.PixelSpacing = [float(spacing[1]), float(spacing[0])]
            d.SliceThickness = d.SpacingBetweenSlices = float(spacing[2])
            if table is not None:
                b, g = float(table.bvals[q]), RAS_TO_LPS @ table.bvecs[q].numpy()
                d.DiffusionBValue = b
                d.DiffusionDirectionality = "DIRECTIONAL" if b else "NONE"
                if b:
                    d.DiffusionGradientOrientation = [float(v) for v in g]
            d.Rows, d.Columns = dwi.shape[1], dwi.shape[0]
            d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
            d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 0
            d.RescaleSlope, d.RescaleIntercept = "1", "0"
            d.PixelData = np.ascontiguousarray(dwi[:, :, k, q].T.astype("<u2")).tobytes()
            paths.append(folder / f"{PATIENT['PatientName']}_{number}_{q:03d}_{k:03d}.dcm")
            d.save_as(paths[-1], enforce_file_format=True)
    return paths
