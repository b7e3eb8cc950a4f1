"""MONAI Deploy: a DICOM diffusion series comes in, a DICOM segmentation of its lesions goes out; CPUs will do.

    pip install -r requirements.txt -r deploy/requirements.txt
    python deploy -i FOLDER -o results

in the assembled directory of the bundle. Operators of the SDK stand at neither end: its loader keeps one instance for
each slice position, of all volumes, and its writer takes the slices of a mask for those of the instances in their
order. Research only, not for diagnosis.
"""

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.deploy.conditions import CountCondition
from monai.deploy.core import Application, Fragment, Image, IOType, Operator, OperatorSpec, init_app_context
from monai.deploy.operators import IOMapping, MonaiBundleInferenceOperator


class DiffusionSeriesOperator(Operator):
    """Give the diffusion series of a folder as an image with its gradient table, and say where it came from.

    Outputs
    -------
    image : Image, shape (Q, X, Y, Z), float32
        With affine and gradients (rows x y z b, world frame) in its metadata.
    scan : dict
        From `eqdmri_monai.files.dicom.dicom_to_scan`.
    """

    def __init__(self, fragment: Fragment, *args, folder: Path, **kwargs):
        self.folder = folder
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Name the outputs."""
        spec.output("image")
        spec.output("scan")

    def compute(self, op_input, op_output, context) -> None:
        """Convert the series in a temporary folder, which goes when the program ends."""
        from eqdmri_monai.files.dicom import dicom_to_scan, temporary_folder
        from eqdmri_monai.files.nifti import check_nifti
        from eqdmri_monai.files.tables import read_table

        scan = dicom_to_scan(self.folder, temporary_folder())
        _, affine = check_nifti(scan["image"], ndim=4)
        volumes = np.moveaxis(nib.load(scan["image"]).get_fdata(dtype=np.float32), -1, 0)
        gradients = read_table(scan, affine, volumes=len(volumes)).rows.numpy()
        meta = {"affine": affine, "original_affine": affine, "gradients": gradients, "filename_or_obj": scan["image"]}
        op_output.emit(Image(np.ascontiguousarray(volumes), meta), "image")
        op_output.emit(scan, "scan")


class LesionSegmentationOperator(Operator):
    """Write the mask as a DICOM segmentation that refers to the b0 images of the series, and a record of it.

    Inputs
    ------
    pred : Image
        Mask, axes Z Y X as the SDK leaves them.
    scan : dict
        From `DiffusionSeriesOperator`.
    """

    def __init__(self, fragment: Fragment, *args, folder: Path, bundle: Path, **kwargs):
        self.folder, self.bundle = folder, bundle
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Name the inputs."""
        spec.input("pred")
        spec.input("scan")

    def compute(self, op_input, op_output, context) -> None:
        """Write ``seriesNNN_lesion.dcm`` and ``seriesNNN_report.json``."""
        from eqdmri_monai.files.dicom_results import b0_images, write_segmentation
        from eqdmri_monai.files.writing import output_folder
        from eqdmri_monai.report import sha256, write_record

        lesion, scan = op_input.receive("pred").asnumpy().transpose(2, 1, 0), op_input.receive("scan")
        models = (self.bundle / "models" / name for name in ("model.ts", "model.pt"))
        weights = next(path for path in models if path.is_file())  # the one that the SDK takes
        threshold = json.loads((self.bundle / "configs" / "inference.json").read_text(encoding="utf-8"))["threshold"]
        stem = Path(output_folder(self.folder)) / Path(scan["image"]).stem
        inputs = [scan[key] for key in ("image", "bval", "bvec")]
        write_record(f"{stem}_report.json", inputs, weights=weights, settings={"threshold": threshold})
        write_segmentation(
            f"{stem}_lesion.dcm",
            lesion,
            nib.load(scan["image"]).affine,
            b0_images(scan["dicom"], np.loadtxt(scan["bval"], ndmin=1)),
            parameters={"threshold": f"{threshold:g}", "weights_sha256": sha256(weights)},
        )


class LesionApplication(Application):
    """Series, network, segmentation."""

    def compose(self) -> None:
        """Put the operators together."""
        context = init_app_context(self.argv)
        bundle = bundle_folder(Path(context.model_path))
        context.models = None  # the inference operator reads the bundle itself
        sys.path.insert(0, str(bundle))
        series = DiffusionSeriesOperator(self, CountCondition(self, 1), folder=Path(context.input_path), name="series")
        network = MonaiBundleInferenceOperator(
            self,
            app_context=context,
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            bundle_path=bundle,
            name="network",
        )
        segmentation = LesionSegmentationOperator(
            self, folder=Path(context.output_path), bundle=bundle, name="segmentation"
        )
        self.add_flow(series, network, {("image", "image")})
        self.add_flow(network, segmentation, {("pred", "pred")})
        self.add_flow(series, segmentation, {("scan", "scan")})


def bundle_folder(models: Path) -> Path:
    """Return the bundle: the folder of models or one in it, as in a package, else the one around this application."""
    for folder in (models, *sorted(models.glob("*")), Path(__file__).resolve().parents[1]):
        if (folder / "configs" / "inference.json").is_file():
            return folder.resolve()
    raise FileNotFoundError(f"{models}: no bundle there; run scripts/build_bundle.py, and this in what it makes")


if __name__ == "__main__":
    LesionApplication().run()
