"""FSL's programs as nipype interfaces, and what has to be there to run them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...config import Preprocess
from ...errors import BrainLMError, RecordingError

#: FNIRT, level by level, as in FSL's T1_2_MNI152_2mm (whole mm: nipype takes no others).
SUBSAMPLING = [4, 4, 2, 2, 1, 1]
ITERATIONS = [5, 5, 5, 5, 5, 10]
INPUT_FWHM_MM = [8, 6, 5, 4, 3, 2]
REFERENCE_FWHM_MM = [8, 6, 5, 4, 2, 0]
STIFFNESS = [300.0, 150.0, 100.0, 50.0, 40.0, 30.0]
MATCH_INTENSITY = [1, 1, 1, 1, 1, 0]


def commands_for(config: Preprocess) -> list[str]:
    """Names of the programs that a configuration calls."""
    fix = config.fix_weights is not None
    through_t1w = ["bet"] if config.use_t1w or fix else []
    ica = ["melodic"] if config.uses_ica else []
    judge = ["fix"] if fix else []
    return ["mcflirt", "flirt", "fnirt", "convertwarp", *through_t1w, *ica, *judge]


def require_commands(config: Preprocess) -> None:
    """BrainLMError, naming what is missing, unless FSL (and FIX's weights, if named) are there."""
    missing = [name for name in commands_for(config) if shutil.which(name) is None]
    if missing:
        where = os.environ.get("FSLDIR")
        raise BrainLMError(
            f"preprocess.engine: fsl needs {', '.join(missing)}, not found on PATH (FSLDIR is "
            f"{where or 'not set'}); load FSL first ('module load fsl', or the environment in "
            "envs/fsl.yaml) so that $FSLDIR/bin is on PATH, or set engine: builtin, which needs "
            "none of it"
        )
    weights = config.fix_weights
    if weights is not None and not weights.is_file():
        raise BrainLMError(
            f"preprocess.fix_weights: {weights.absolute()} is not a file; name FIX's trained "
            "weights (.pyfix_model or .RData), or leave it out for the ICA-AROMA rules"
        )


def read_version() -> str:
    """FSL's version by its own file, ``unknown`` where there is none."""
    path = Path(os.environ.get("FSLDIR", "")) / "etc" / "fslversion"
    return path.read_text().split()[0] if path.is_file() else "unknown"


@contextmanager
def workspace(status: str) -> Iterator[Path]:
    """A folder for FSL's files; what FSL does wrong is this recording's status."""
    with tempfile.TemporaryDirectory(prefix="brainlm-fsl-") as folder:
        try:
            yield Path(folder)
        except (RuntimeError, ValueError, FileNotFoundError) as error:
            words = " ".join(str(error).replace(folder, "").split())
            raise RecordingError(status, f"FSL: {words}"[:600]) from error


def command(name: str, *, images: str = "NIFTI", **inputs: Any) -> Any:
    """A nipype interface to an FSL program.

    Images are uncompressed whatever FSLOUTPUTTYPE says, as they live for a step only, unless
    `images` (its value for this program) says otherwise. One thread, as recordings are what runs
    side by side.
    """
    from nipype import config

    config.set("execution", "check_version", "false")  # nipype would ask a server otherwise
    from nipype.interfaces import fsl

    fsl.FSLCommand.set_default_output_type(images)
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    one["FSLOUTPUTTYPE"] = images  # FIX is no FSLCommand to nipype
    inputs = {k: str(v) if isinstance(v, Path) else v for k, v in inputs.items() if v is not None}
    return getattr(fsl, name)(environ=one, terminal_output="allatonce", **inputs)


def run_program(interface: Any, folder: Path) -> Any:
    """Outputs of a program; RuntimeError with the program's own words where it fails."""
    result = interface.run(cwd=str(folder), ignore_exception=True)  # else its words are lost
    made = result.runtime
    if result.outputs is None or made.get("returncode") != 0:
        words = made.stderr or made.stdout or made.get("traceback")
        raise RuntimeError(f"{interface.cmd} failed: {str(words).strip()[-400:]}")
    return result.outputs


def mcflirt(bold: Path, realigned: Path, reference: int) -> Any:
    """MCFLIRT as FEAT calls it: three stages, normalised correlation, to one volume."""
    return command(
        "MCFLIRT", in_file=bold, out_file=realigned, ref_vol=reference, stages=3,
        cost="normcorr", interpolation="spline", save_mats=True, save_plots=True,
    )  # fmt: skip


def flirt(moving: Path, reference: Path, dof: int) -> Any:
    """FLIRT from where the headers put the two images, by correlation ratio."""
    return command(
        "FLIRT", in_file=moving, reference=reference, dof=dof, cost="corratio", uses_qform=True,
        out_matrix_file=moving.with_name(f"{moving.stem}_to_{reference.stem}.mat"),
        out_file=moving.with_name(f"{moving.stem}_to_{reference.stem}.nii"),
    )  # fmt: skip


def fnirt(moving: Path, reference: Path, affine: Path, mask: Path, levels: int) -> Any:
    """FNIRT with the first `levels` levels of FSL's T1_2_MNI152_2mm."""
    return command(
        "FNIRT", in_file=moving, ref_file=reference, affine_file=affine, refmask_file=mask,
        fieldcoeff_file=str(moving.with_name(f"{moving.stem}_coefficients.nii")),
        warped_file=moving.with_name(f"{moving.stem}_warped.nii"),
        log_file=moving.with_name(f"{moving.stem}_fnirt.log"),
        subsampling_scheme=SUBSAMPLING[:levels], max_nonlin_iter=ITERATIONS[:levels],
        in_fwhm=INPUT_FWHM_MM[:levels], ref_fwhm=REFERENCE_FWHM_MM[:levels],
        regularization_lambda=STIFFNESS[:levels],
        apply_intensity_mapping=MATCH_INTENSITY[:levels], warp_resolution=(10, 10, 10),
        regularization_model="bending_energy", intensity_mapping_order=5,
        intensity_mapping_model="global_non_linear_with_bias", biasfield_resolution=(50, 50, 50),
        # zero is outside the brain, and where the brain ends is what there is to match
        skip_implicit_ref_masking=True, skip_implicit_in_masking=True,
    )  # fmt: skip


def convertwarp(template: Path, coefficients: Path, rigid: Path | None) -> Any:
    """FNIRT's coefficients, and what comes before them, as one field of displacements."""
    return command(
        "ConvertWarp", reference=template, warp1=coefficients, premat=rigid, out_relwarp=True,
        out_file=template.with_name("field.nii"),
    )  # fmt: skip


def bet(head: Path) -> Any:
    """BET with its robust centre, for heads with a neck."""
    return command("BET", in_file=head, out_file=head.with_name("t1w_brain.nii"), robust=True)


def melodic(bold: Path, mask: Path, out: Path, tr_s: float) -> Any:
    """MELODIC on one run, within a mask, model order by its own estimate."""
    return command(
        "MELODIC", in_files=[str(bold)], mask=mask, out_dir=out, no_bet=True, tr_sec=tr_s
    )
