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


def commands_for(config: Preprocess) -> list[str]:
    """Names of the programs that a configuration calls."""
    through_t1w = ["bet", "fnirt", "convertwarp"] if config.use_t1w else []
    return ["mcflirt", "flirt", *through_t1w, *(["melodic"] if config.uses_ica else [])]


def require_commands(config: Preprocess) -> None:
    """BrainLMError, naming what is missing, unless FSL's programs are there."""
    missing = [name for name in commands_for(config) if shutil.which(name) is None]
    if missing:
        where = os.environ.get("FSLDIR")
        raise BrainLMError(
            f"preprocess.engine: fsl needs {', '.join(missing)}, not found on PATH (FSLDIR is "
            f"{where or 'not set'}); load FSL first ('module load fsl', or the environment in "
            "envs/fsl.yaml) so that $FSLDIR/bin is on PATH, or set engine: builtin, which needs "
            "none of it"
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


def command(name: str, **inputs: Any) -> Any:
    """A nipype interface to an FSL program.

    Images are uncompressed whatever FSLOUTPUTTYPE says, as they live for a step only. One thread,
    as recordings are what runs side by side.
    """
    from nipype import config

    config.set("execution", "check_version", "false")  # nipype would ask a server otherwise
    from nipype.interfaces import fsl

    fsl.FSLCommand.set_default_output_type("NIFTI")
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    inputs = {k: str(v) if isinstance(v, Path) else v for k, v in inputs.items()}
    return getattr(fsl, name)(environ=one, terminal_output="allatonce", **inputs)


def run_program(interface: Any, folder: Path) -> Any:
    """Outputs of a program; RuntimeError with the program's own words where it fails."""
    result = interface.run(cwd=str(folder), ignore_exception=True)  # else its words are lost
    made = result.runtime
    if result.outputs is None or made.get("returncode") != 0:
        words = made.stderr or made.stdout or made.get("traceback")
        raise RuntimeError(f"{interface.cmd} failed: {str(words).strip()[-400:]}")
    return result.outputs


def mcflirt(bold: Path, reference: int) -> Any:
    """MCFLIRT as FEAT calls it: three stages, normalised correlation, to one volume."""
    return command(
        "MCFLIRT", in_file=bold, out_file=bold.with_name("realigned.nii"), ref_vol=reference,
        stages=3, cost="normcorr", interpolation="spline", save_mats=True,
    )  # fmt: skip


def flirt(moving: Path, reference: Path, dof: int) -> Any:
    """FLIRT from where the headers put the two images, by correlation ratio."""
    pair = f"{moving.stem}_to_{reference.stem}"
    return command(
        "FLIRT", in_file=moving, reference=reference, dof=dof, cost="corratio", uses_qform=True,
        out_matrix_file=moving.with_name(f"{pair}.mat"),
        out_file=moving.with_name(f"{pair}.nii"),
    )  # fmt: skip


def fnirt(head: Path, template: Path, affine: Path, mask: Path) -> Any:
    """FNIRT with FSL's own configuration for a T1w image and MNI152, on our template."""
    return command(
        "FNIRT", in_file=head, ref_file=template, affine_file=affine, refmask_file=mask,
        config_file="T1_2_MNI152_2mm", fieldcoeff_file=str(head.with_name("coefficients.nii")),
        warped_file=head.with_name("warped.nii"), log_file=head.with_name("fnirt.log"),
    )  # fmt: skip


def convertwarp(template: Path, coefficients: Path, rigid: Path) -> Any:
    """FNIRT's coefficients, and the matrix that comes before them, as one relative warp."""
    return command(
        "ConvertWarp", reference=template, warp1=coefficients, premat=rigid, out_relwarp=True,
        out_file=template.with_name("field.nii"),
    )  # fmt: skip


def bet(head: Path) -> Any:
    """BET with its robust centre, for heads with a neck."""
    return command("BET", in_file=head, out_file=head.with_name("t1w_brain.nii"), robust=True)


def melodic(bold: Path, mask: Path, tr_s: float) -> Any:
    """MELODIC on one run, within a mask, model order by its own estimate."""
    return command(
        "MELODIC", in_files=[str(bold)], mask=mask, out_dir=bold.with_name("ica"), no_bet=True,
        tr_sec=tr_s,
    )  # fmt: skip
