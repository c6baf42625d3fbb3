"""Echoes of a run become one series, weighted by T2*; what is not of one run is refused."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from brainlm.cohort.index import read_entries, update_index
from brainlm.config import Cohort
from brainlm.errors import RecordingError
from brainlm.paths import Results
from brainlm.preprocess.io.echoes import read_run, weigh_echoes
from brainlm.preprocess.io.read import read_bold

TIMES_S = np.array([0.012, 0.028, 0.044])
SHAPE = (16, 14, 12, 30)


def weights_of(t2star_s: np.ndarray, times_s: np.ndarray = TIMES_S) -> np.ndarray:
    """Posse's weights, echo by echo."""
    raw = np.stack([time * np.exp(-time / t2star_s) for time in times_s])
    return raw / raw.sum(0)


def test_weights_are_those_of_the_true_decay():
    random = np.random.default_rng(0)
    t2star_s, s0 = random.uniform(0.01, 0.09, (5, 6, 7)), random.uniform(500, 5000, (5, 6, 7))
    means = np.stack([s0 * np.exp(-time / t2star_s) for time in TIMES_S])
    np.testing.assert_allclose(weigh_echoes(means, TIMES_S), weights_of(t2star_s), atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_weights_of_any_image_share_out_one(seed):
    random = np.random.default_rng(seed)
    count = int(random.integers(2, 6))
    times_s = np.sort(random.uniform(0.005, 0.08, count))
    means = random.choice([-3.0, 0.0, 1e-9, 5.0, 1e4], (count, 500)) * random.random((count, 500))
    weights = weigh_echoes(means, times_s)
    assert np.isfinite(weights).all() and (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(0), 1, atol=1e-5)


def write_echoes(folder: Path, times_s=TIMES_S, *, noise: float = 8.0, ending: str = ".nii.gz",
                 **changes) -> list[Path]:  # fmt: skip
    """Echo files of one run, and what belongs to the last one of `changes`."""
    random = np.random.default_rng(1)
    t2star_s = random.uniform(0.02, 0.06, SHAPE[:3])
    bold = 0.5 * np.sin(np.arange(SHAPE[3]))  # 1/s, of the rate of decay
    paths = []
    for number, time_s in enumerate(times_s, 1):
        rate = 1 / t2star_s[..., None] + bold
        data = 2000 * np.exp(-time_s * rate) + random.normal(0, noise, SHAPE)
        affine, side = np.diag([4.0, 4, 4, 1]), {"RepetitionTime": 2.0, "EchoTime": time_s}
        if number == len(times_s):
            data = data[..., : changes.get("count", SHAPE[3])]
            affine[0, 3] += changes.get("shift", 0.0)
            side |= changes.get("side", {})
        path = folder / f"sub-01/func/sub-01_task-rest_echo-{number}_bold{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(data.astype(np.float32), affine)
        image.header["pixdim"][4] = 2.0
        nib.save(image, path)
        path.with_name(path.name.removesuffix(ending) + ".json").write_text(json.dumps(side))
        paths.append(path)
    return paths


def test_a_run_is_the_weighted_sum_of_its_echoes_and_follows_the_signal_best(tmp_path):
    paths = write_echoes(tmp_path)
    run = read_run(paths[::-1])
    assert run.echo_times_s == tuple(TIMES_S) and run.tr_s == 2.0
    assert run.sidecar["EchoTime"] == TIMES_S[0] and run.warnings == []
    echoes = np.stack([read_bold(path).volumes for path in paths])
    weights = weigh_echoes(echoes.mean(1), TIMES_S)
    np.testing.assert_allclose(run.volumes, (weights[:, None] * echoes).sum(0), rtol=1e-4)
    signal = np.sin(np.arange(SHAPE[3]))

    def follows(volumes) -> float:
        series = volumes.reshape(len(volumes), -1)
        return float(-np.mean([np.corrcoef(signal, voxel)[0, 1] for voxel in series.T[::7]]))

    alone = [follows(echo) for echo in echoes]
    assert follows(run.volumes) > max(*alone, follows(echoes.mean(0)))


@pytest.mark.parametrize(
    ("times_s", "changes", "words"),
    [
        (TIMES_S, {"side": {"EchoTime": None}}, "echo-3_bold.nii.gz: one echo .* found none"),
        (TIMES_S, {"side": {"EchoTime": 44}}, "found 44; it looks like milliseconds"),
        (TIMES_S, {"side": {"EchoTime": "0.044"}}, "EchoTime is '0.044', expected seconds"),
        ([0.012, 0.028, 0.028], {}, "with different echo times .*0.028"),
        (TIMES_S, {"count": 29}, "the same shapes: .*30.* and .*29"),
        (TIMES_S, {"shift": 1.5}, "the same orientations"),
        (TIMES_S, {"side": {"RepetitionTime": 2.5}}, "2.5"),
    ],
)
def test_echoes_that_are_not_of_one_run_are_refused(tmp_path, times_s, changes, words):
    paths = write_echoes(tmp_path, times_s, **changes)
    with pytest.raises(RecordingError, match=words) as caught:
        read_run(paths)
    assert caught.value.status == "bad_metadata"


def test_an_index_leads_to_all_echoes(tmp_path):
    first, *others = write_echoes(tmp_path / "bids")
    compressed = others[-1].with_suffix("")  # the last one is not compressed
    nib.save(nib.load(others[-1]), compressed)
    others[-1].unlink()
    cohort = Cohort(name="c", folder=tmp_path / "bids", layout="bids")
    update_index(cohort, tmp_path / "results", "auto")
    table = Results(tmp_path / "results").index("c")
    (entry,) = read_entries(table, cohort.folder)
    assert entry.recording_id == "sub-01_task-rest"
    assert entry.list_echoes() == [first, others[0], compressed]
    before = table.read_bytes()
    others[0].write_bytes(first.read_bytes())  # an echo of it is another file now
    assert update_index(cohort, tmp_path / "results", "auto", everything=True).changed == 1
    assert table.read_bytes() != before
    cohort = Cohort(name="d", folder=tmp_path / "bids", layout="bids", select={"echo": "2"})
    update_index(cohort, tmp_path / "results", "auto")
    (entry,) = read_entries(Results(tmp_path / "results").index("d"), cohort.folder)
    assert entry.list_echoes() == [others[0]]
