"""Motion against the truth of a phantom that is made without splines."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from brainlm.errors import RecordingError
from brainlm.preprocess.motion.rigid import (
    estimate_motion,
    framewise_displacement_jenkinson,
    framewise_displacement_power,
    parameters_of,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from phantom import STRESS, make_phantom, make_stress, rms_errors


def transforms_of(parameters: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """The inverse of `parameters_of`, by scipy."""
    transforms = np.repeat(np.eye(4)[None], len(parameters), axis=0)
    transforms[:, :3, :3] = turns = Rotation.from_euler("XYZ", parameters[:, 3:]).as_matrix()
    transforms[:, :3, 3] = parameters[:, :3] + centre - turns @ centre
    return transforms


@pytest.fixture(scope="module")
def phantom():
    return make_phantom("3mm", 24, seed=1)


@pytest.fixture(scope="module")
def motion(phantom):
    return estimate_motion(phantom.volumes, phantom.affine)


def test_accuracy_on_the_base_phantom(phantom, motion):
    errors = rms_errors(phantom, motion.transforms)
    assert errors.mean() <= 0.015
    assert errors.max() <= 0.04


@pytest.mark.parametrize("case", [name for name in STRESS if name not in ("base", "still")])
def test_accuracy_holds_where_it_is_hard(case):
    """Twelve volumes of 4 mm; benchmarks/motion.py --stress has the full size."""
    phantom, mask = make_stress(case)
    errors = rms_errors(
        phantom, estimate_motion(phantom.volumes, phantom.affine, mask=mask).transforms
    )
    mean, worst = {"dropped slices": (0.06, 0.2), "masked in place": (0.05, 0.08)}.get(
        case, (0.03, 0.06)
    )
    assert errors.mean() <= mean
    assert errors.max() <= worst


def test_memory_stays_near_the_input(phantom):
    tracemalloc.start()
    estimate_motion(phantom.volumes, phantom.affine)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < phantom.volumes.nbytes / 4 + 60e6  # in addition to the input


def test_result_is_complete_and_consistent(phantom, motion):
    count = len(phantom.volumes)
    assert motion.transforms.shape == (count, 4, 4)
    assert motion.residual.shape == motion.refitted.shape == (count,)
    assert motion.reference.dtype == np.float32
    again = transforms_of(motion.parameters, motion.centre)
    np.testing.assert_allclose(again, motion.transforms, atol=1e-9)
    own = motion.parameters[motion.reference_index]
    assert np.abs(own[:3]).max() < 0.1  # the mean image lies where the reference volume does


def test_is_deterministic(phantom, motion):
    again = estimate_motion(phantom.volumes, phantom.affine)
    np.testing.assert_array_equal(again.transforms, motion.transforms)


def test_dropped_slices_are_refitted():
    phantom = make_phantom("demo", 20, seed=1, dropped=(5, 11))
    motion = estimate_motion(phantom.volumes, phantom.affine)
    assert motion.refitted[[5, 11]].all()
    assert rms_errors(phantom, motion.transforms)[[5, 11]].max() < 0.3


def test_unusable_volumes_borrow_a_transform():
    phantom = make_phantom("demo", 12, seed=1)
    phantom.volumes[4] = np.nan
    phantom.volumes[8] = 0
    motion = estimate_motion(phantom.volumes, phantom.affine)
    assert np.isfinite(motion.transforms).all()
    assert np.flatnonzero(np.isnan(motion.residual)).tolist() == [4, 8]
    np.testing.assert_array_equal(motion.transforms[4], motion.transforms[3])


@pytest.mark.parametrize("broken", ["noise", "nan", "flat"])
def test_what_cannot_be_aligned_is_an_error(broken):
    volumes = np.random.default_rng(0).normal(size=(8, 20, 24, 24)).astype(np.float32)
    if broken == "nan":
        volumes[2:] = np.nan
    if broken == "flat":
        volumes = volumes[:, :2]
    with pytest.raises(RecordingError) as error:
        estimate_motion(volumes, np.diag([3.0, 3.0, 3.0, 1]))
    assert error.value.status in ("motion_failed", "bad_data")


def test_framewise_displacement_by_hand():
    parameters = np.zeros((3, 6))
    parameters[1] = [1, 0, 0, 0, 0, 0.01]
    np.testing.assert_allclose(framewise_displacement_power(parameters), [np.nan, 1.5, 1.5])
    transforms = transforms_of(parameters, np.zeros(3))
    turn = 80**2 / 5 * 4 * (1 - np.cos(0.01))  # tr(M'M) of a rotation less the identity
    expected = np.sqrt(1 + turn)
    found = framewise_displacement_jenkinson(transforms, np.zeros(3))
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1], expected, rtol=1e-9)


def test_parameters_follow_the_stated_convention():
    centre = np.array([10.0, -5, 20])
    turn = transforms_of(np.array([[0, 0, 0, 0, 0, np.pi / 2]]), centre)[0]
    np.testing.assert_allclose(turn[:3, :3] @ [1, 0, 0], [0, 1, 0], atol=1e-12)  # right-handed
    np.testing.assert_allclose(turn[:3, :3] @ centre + turn[:3, 3], centre)
    parameters = np.random.default_rng(0).normal(scale=0.3, size=(9, 6))
    again = parameters_of(transforms_of(parameters, centre), centre)
    np.testing.assert_allclose(again, parameters, atol=1e-9)
