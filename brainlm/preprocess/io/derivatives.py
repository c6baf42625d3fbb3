"""Where derivatives are and how they are written: BIDS names from entities, sidecars, tables."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...atlas import Atlas
from ...errors import BrainLMError
from ...files import atomic_path, read_json, write_json, write_text
from ...tables import format_tsv, read_tsv, write_tsv

_AGAIN = "run the stage that writes it again"
#: Entities that say what was done, in the order in which BIDS names carry them.
_ORDER = ("from", "to", "mode", "space", "res", "atlas", "stat", "desc")
#: Names that the standard does not know yet; they follow fMRIPrep and the BEP012/BEP017 drafts.
_IGNORE = (
    "*_desc-hmc_boldref.*",
    "*_xfm.*",
    "*_desc-confounds_timeseries.*",
    "*_desc-ica_mixing.*",
    "*_desc-ica_components.*",
    "*_desc-aroma_metrics.*",
    "*_desc-filtered_timeseries.*",
    "*_stat-coverage_bold.*",
    "*_stat-mean_timeseries.*",
    "*_stat-tsnr_boldmap.*",
)
#: What the ``desc`` entities of the names mean: descriptions.tsv, which the standard asks for.
_DESCRIPTIONS = {
    "desc-hmc": "Head motion correction",
    "desc-brain": "Brain of the reference image",
    "desc-confounds": "Motion, tissue signals, filter and artefact components, one row per volume",
    "desc-refused": "A fit that did not pass its checks; kept to look at, used by nothing",
    "desc-ica": "Independent components",
    "desc-aroma": "Features and verdicts of the components",
    "desc-filtered": "Parcel means, filtered and not denoised",
    "desc-denoised": "Motion-corrected, normalised, filtered and denoised",
}
#: ITK's world is LPS, ours is RAS.
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Derivatives:
    """Files of one recording: where a stage writes and whoever comes later reads.

    Attributes
    ----------
    boldref, mask, transforms, tsnr : Path
        Motion correction: reference image, brain, one rigid transform a volume, tSNR map.
    confounds : Path
        One row per volume, by motion correction and denoising.
    normalisation, refused : Path
        Template mm -> reference mm; `refused` in its place where the fit did not pass.
    mixing, metrics, maps : Path
        The ICA: time courses, features with verdicts, thresholded maps.
    coverage, filtered : Path
        Per parcel: share in the field of view; the series before denoising.
    timeseries, volumes, fsl_matrices : Path
        Only where ``preprocess.outputs`` asks for them.
    """

    def __init__(self, out: Path, recording_id: str, atlas: Atlas):
        def path(suffix: str, extension: str, **entities: str) -> Path:
            # "from" is a keyword: callers write from_
            named = {key.rstrip("_"): value for key, value in entities.items()}
            return derivative_path(out, recording_id, suffix, extension, named)

        space = atlas.space or "template"
        parcels = {"space": space, "atlas": atlas.name}
        self.boldref = path("boldref", ".nii.gz", desc="hmc")
        self.mask = path("mask", ".nii.gz", desc="brain")
        self.transforms = path("xfm", ".txt", from_="orig", to="boldref", mode="image", desc="hmc")
        self.tsnr = path("boldmap", ".nii.gz", stat="tsnr")
        self.confounds = path("timeseries", ".tsv", desc="confounds")
        self.normalisation = path("xfm", ".npz", from_="boldref", to=space, mode="image")
        self.refused = path("xfm", ".npz", from_="boldref", to=space, mode="image", desc="refused")
        self.mixing = path("mixing", ".tsv", desc="ica")
        self.metrics = path("metrics", ".tsv", desc="aroma")
        self.maps = path("components", ".nii.gz", space=space, desc="ica")
        self.coverage = path("bold", ".tsv", **parcels, stat="coverage")
        self.timeseries = path("timeseries", ".tsv", **parcels, stat="mean")
        self.volumes = path("bold", ".nii.gz", space=space, desc="denoised")
        self.fsl_matrices = self.transforms.with_suffix(".mat")
        self.filtered = path("timeseries", ".npz", **parcels, stat="mean", desc="filtered")


def sidecar(path: Path) -> Path:
    """The JSON file next to a derivative."""
    name = path.name.removesuffix(".gz")
    return path.with_name(name[: name.rindex(".")] + ".json")


def read_own_sidecar(path: Path) -> dict[str, Any]:
    """What the JSON file of a derivative says; empty if there is none."""
    known = sidecar(path)
    return read_json(known) if known.exists() else {}


def bids_uri(out: Path, path: Path) -> str:
    return f"bids::{path.relative_to(out)}"


def derivative_path(
    out: Path, recording_id: str, suffix: str, extension: str, entities: Mapping[str, str] = {}
) -> Path:
    """Path of a derivative of one recording.

    Parameters
    ----------
    out : Path
        The derivatives dataset.
    recording_id : str
        ``sub-01_ses-2_task-rest_run-1``; its sub and ses name the folders.
    suffix, extension : str
        ``"boldref"``, ``".nii.gz"``.
    entities : mapping
        Added behind those of the recording; values are reduced to letters and digits.
    """
    own = entities_of(recording_id)
    unknown = set(entities) - set(_ORDER)
    if unknown:
        raise ValueError(f"unknown entities {sorted(unknown)}")
    added = [
        f"{key}-{re.sub('[^a-zA-Z0-9+]', '', entities[key])}" for key in _ORDER if key in entities
    ]
    folders = [f"{key}-{own[key]}" for key in ("sub", "ses") if key in own]
    return out.joinpath(*folders, "func", "_".join([recording_id, *added, suffix]) + extension)


def entities_of(recording_id: str) -> dict[str, str]:
    """``sub-01_task-rest`` -> {"sub": "01", "task": "rest"}."""
    return dict(part.split("-", 1) for part in recording_id.split("_"))


def describe_dataset(out: Path, source_folder: Path) -> None:
    """Write dataset_description.json once; .bidsignore and descriptions.tsv as they are now."""
    description = out / "dataset_description.json"
    if not description.exists():
        write_json(
            description,
            {
                "Name": f"{source_folder.name}: parcel series and the fits behind them",
                "BIDSVersion": "1.10.0",
                "DatasetType": "derivative",
                "GeneratedBy": [{"Name": "brainlm-pipeline", "Version": __version__}],
                "SourceDatasets": [{"URL": source_folder.resolve().as_uri()}],
            },
        )
    described = format_tsv(("desc_id", "description"), _DESCRIPTIONS.items())
    for name, text in (
        (".bidsignore", "\n".join(_IGNORE) + "\n"),
        ("descriptions.tsv", described),
    ):
        path = out / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)


def write_volume(
    path: Path, volumes: np.ndarray, affine: np.ndarray, *, space: str, tr_s: float | None = None
) -> None:
    """Write [Z, Y, X] or [C, Z, Y, X] as NIfTI.

    Parameters
    ----------
    space : str
        ``"scanner"`` or ``"template"``: the code of sform and qform.
    tr_s : float, optional
        s between volumes of a run, for the header.
    """
    import nibabel as nib

    values = volumes.astype(np.uint8) if volumes.dtype == bool else volumes
    image = nib.Nifti1Image(values.T, affine)
    code = {"scanner": 1, "template": 4}[space]
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    image.header.set_xyzt_units("mm", "sec")
    if tr_s is not None:
        image.header["pixdim"][4] = tr_s
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def read_volume(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read back a 3-D derivative as float32 [Z, Y, X] with its affine."""
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError

    try:
        image: Any = nib.load(path)
        return np.ascontiguousarray(np.asarray(image.dataobj, np.float32).T), image.affine
    except FileNotFoundError:
        raise BrainLMError(f"{path}: not found; {_AGAIN}") from None
    except (ImageFileError, OSError, EOFError, ValueError, zlib.error):
        raise BrainLMError(f"{path}: damaged; delete it and {_AGAIN}") from None


def write_table(path: Path, columns: Mapping[str, Any], digits: int = 9) -> None:
    """Write columns of equal length as TSV; NaN is ``n/a``."""
    rows = ([_cell(v, digits) for v in row] for row in zip(*columns.values(), strict=True))
    write_tsv(path, list(columns), rows)


def _cell(value: Any, digits: int) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (float, np.floating)):
        return format(float(value), f".{digits}g") if np.isfinite(value) else "n/a"
    return str(value)


def read_table(path: Path) -> dict[str, np.ndarray]:
    """Read a TSV written by :func:`write_table`: numbers as float64, the rest as text."""
    table = read_tsv(path, hint=_AGAIN)
    cells = np.array(table.rows, dtype=object).reshape(-1, len(table.columns))
    return {name: _as_numbers(cells[:, i]) for i, name in enumerate(table.columns)}


def _as_numbers(cells: np.ndarray) -> np.ndarray:
    try:
        return np.array([np.nan if cell == "n/a" else float(cell) for cell in cells])
    except ValueError:
        return cells.astype(str)


def write_transforms(path: Path, transforms: np.ndarray) -> None:
    """Write [T, 4, 4] rigid transforms (RAS, reference world -> world of volume t) as ITK text.

    ITK maps points of the fixed (reference) image to the moving one, as ours do, in LPS.
    """
    lines = ["#Insight Transform File V1.0"]
    for index, transform in enumerate(transforms):
        lps = _LPS @ transform @ _LPS
        numbers = [*lps[:3, :3].ravel(), *lps[:3, 3]]
        lines += [
            f"#Transform {index}",
            "Transform: AffineTransform_double_3_3",
            "Parameters: " + " ".join(format(float(n), ".17g") for n in numbers),
            "FixedParameters: 0 0 0",
        ]
    write_text(path, "\n".join(lines) + "\n")


def read_transforms(path: Path) -> np.ndarray:
    """Read what :func:`write_transforms` wrote."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BrainLMError(f"{path}: not found; {_AGAIN}") from None
    rows = re.findall(r"^Parameters: (.*)$", text, re.MULTILINE)
    try:
        numbers = np.array([row.split() for row in rows], np.float64).reshape(-1, 12)
    except ValueError:
        raise BrainLMError(f"{path}: damaged; delete it and {_AGAIN}") from None
    lps = np.tile(np.eye(4), (len(numbers), 1, 1))
    lps[:, :3, :3] = numbers[:, :9].reshape(-1, 3, 3)
    lps[:, :3, 3] = numbers[:, 9:]
    return _LPS @ lps @ _LPS
