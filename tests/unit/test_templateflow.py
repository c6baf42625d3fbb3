"""MNI152NLin6Asym: fetched once and checked, known to be missing before any job starts."""

from __future__ import annotations

import gzip
import hashlib
import shutil
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from brainlm import cli, doctor, templateflow
from brainlm.atlas import Atlas, Registered
from brainlm.config import parse_config
from brainlm.errors import BrainLMError
from brainlm.files import write_json
from brainlm.inference import session
from brainlm.preprocess.denoise.ica_grid import make_grid
from brainlm.preprocess.io.derivatives import Derivatives, sidecar
from brainlm.preprocess.normalise import template
from brainlm.preprocess.normalise.template import load_template, space_of
from brainlm.report import recording
from brainlm.templateflow import get_files
from brainlm.workflow import prepare_run

T1W, MASK = templateflow.FILES
ATLAS = Atlas("a424", "MNI152NLin6Asym", 424, None, "ab", None, (), "", "")
ANOTHER = gzip.compress(b"another", mtime=0)  # the same in every process that collects tests
CONTENT = {name: f"the image {name}".encode() for name in templateflow.FILES}


@pytest.fixture
def server(tmp_path, monkeypatch):
    """TemplateFlow with other images, and a cache without them."""
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(templateflow, "SOURCE", (tmp_path / "server").as_uri())
    digests = {name: hashlib.sha256(image).hexdigest() for name, image in CONTENT.items()}
    monkeypatch.setattr(templateflow, "FILES", digests)
    for name, image in CONTENT.items():
        path = tmp_path / "server" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(image))
    return tmp_path / "server"


def test_the_template_is_fetched_once(server):
    paths = get_files()
    assert [gzip.decompress(path.read_bytes()) for path in paths] == list(CONTENT.values())
    shutil.rmtree(server)
    assert get_files() == get_files(download=False) == paths


def test_placeholders_are_filled_and_other_compressions_are_the_same_image(server):
    cache = server.parent / "cache"
    first, second = (cache / name for name in templateflow.FILES)
    first.parent.mkdir(parents=True)
    first.touch()  # as in the client's skeleton
    mine = gzip.compress(CONTENT[MASK], 1, mtime=7)
    second.write_bytes(mine)
    get_files()
    assert first.stat().st_size and second.read_bytes() == mine


@pytest.mark.parametrize("page", [b"<html>log in first</html>", ANOTHER, b""],
                         ids=["page", "another", "empty"])  # fmt: skip
def test_what_is_not_the_template_is_not_kept(server, page):
    name = MASK
    (server / name).write_bytes(page)
    with pytest.raises(BrainLMError, match=r"brain_mask\.nii\.gz: expected sha256 .* not kept"):
        get_files()
    assert [p.name for p in (server.parent / "cache").rglob("*.gz")] == [T1W.split("/")[1]]


@pytest.mark.parametrize("damage", [b"no gzip", ANOTHER, "cut off"],
                         ids=["no gzip", "another", "cut off"])  # fmt: skip
def test_a_damaged_file_is_named_and_stays(server, damage):
    t1w, _ = get_files()
    t1w.write_bytes(t1w.read_bytes()[:-9] if damage == "cut off" else damage)
    before = t1w.read_bytes()
    with pytest.raises(BrainLMError, match=r"T1w\.nii\.gz: expected .* remove it"):
        get_files()
    assert t1w.read_bytes() == before


def test_a_datalad_clone_is_not_written_into(server):
    path = server.parent / "cache" / T1W
    path.parent.mkdir(parents=True)
    path.symlink_to(".git/annex/objects/nothing")
    with pytest.raises(BrainLMError, match="datalad get"):
        get_files()
    assert path.is_symlink()


# ---- before any job starts


def study(tmp_path, layout: str, atlas: str = "a424") -> dict:
    run = "sub-1/func/sub-1_task-rest"
    names = {
        "bids": f"{run}_bold.nii.gz",
        "fmriprep": f"{run}_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz",
        "parcels": f"{run}_atlas-A424_timeseries.npy",
    }
    path = tmp_path / layout / names[layout]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    cohort = {"name": "c", "folder": str(tmp_path / layout), "layout": layout}
    return {"cohorts": [cohort], "atlas": {"name": atlas}, "tasks": []}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRAINLM_CONFIG", "")
    return tmp_path


def test_planning_stops_where_raw_images_lack_their_template(server, folder, capsys):
    shutil.rmtree(server)
    values = study(folder, "bids")
    with pytest.raises(SystemExit):
        prepare_run(values, is_main_process=True)
    said = capsys.readouterr().err
    name = T1W
    for words in (f"cache/{name}: not found", f"server/{name}", "TEMPLATEFLOW_HOME", "by hand"):
        assert words in said


@pytest.mark.parametrize("layout", ["bids", "parcels"])
def test_an_atlas_without_a_template_takes_no_raw_images(folder, capsys, layout):
    values = study(folder, layout, "cc200")
    if layout == "parcels":
        prepare_run(values, is_main_process=True)
        return
    with pytest.raises(SystemExit):
        prepare_run(values, is_main_process=True)
    assert "cc200: known by its time series only" in capsys.readouterr().err


def test_a_single_raw_run_asks_for_it_before_any_work(server, folder, monkeypatch):
    config = parse_config(study(folder, "bids"))
    monkeypatch.setattr(session, "load_atlas", lambda *_: ATLAS)
    monkeypatch.setattr(session, "open_scans", lambda *_: pytest.fail("it was begun"))
    model = SimpleNamespace(scaling=SimpleNamespace(atlas_sha256=ATLAS.image_sha256))
    shutil.rmtree(server)
    with pytest.raises(BrainLMError, match=r"T1w\.nii\.gz: not found"):
        session.Session(str(folder / "bids"), "model")._preprocess(model, config, print)


def test_planning_fetches_it_for_the_jobs(server, folder):
    prepare_run(study(folder, "bids"), is_main_process=True)
    shutil.rmtree(server)
    assert get_files()


@pytest.mark.parametrize(
    ("layout", "atlas"), [("fmriprep", "a424"), ("parcels", "a424"), ("bids", "demo424")]
)
def test_nothing_is_fetched_that_is_not_needed(server, folder, layout, atlas):
    values = study(folder, layout, atlas)
    prepare_run(values, is_main_process=True)
    assert not (folder / "cache").exists()
    found = doctor.examine_setup(parse_config(values), folder)
    assert "template" not in {finding.name for finding in found}


def test_doctor_says_that_it_is_missing_and_fetches_it(server, folder, capsys, monkeypatch):
    values = study(folder, "bids")
    write_json(folder / "config.yaml", values)

    def examine() -> doctor.Finding:
        found = doctor.examine_setup(parse_config(values), folder)
        return next(finding for finding in found if finding.name == "template")

    assert examine().ok is None and "brainlm doctor --fetch" in str(examine())
    monkeypatch.setattr(cli, "_atlas", lambda config: None)
    cli.main(["doctor", "--fetch", "--config", "config.yaml"])
    assert "ok   template: MNI152NLin6Asym" in capsys.readouterr().out
    assert examine().ok


# ---- what is drawn


@pytest.mark.parametrize(
    ("said", "drawn"),
    [
        ({"Template": "MNI152NLin6Asym"}, "MNI152NLin6Asym"),
        ({"Template": "MNI152NLin6Asym", "TemplateImage": "MNI152NLin2009aSym"},
         "MNI152NLin2009aSym"),
        ({"Template": "MNI152NLin2009aSym"}, "MNI152NLin2009aSym"),
        ({}, None),  # delivered in template space: nothing was fitted
    ],
)  # fmt: skip
def test_pictures_show_the_template_that_was_fitted_to(tmp_path, said, drawn):
    files = Derivatives(tmp_path, "sub-1_task-rest", ATLAS)
    if said:
        write_json(sidecar(files.normalisation), said)
    assert recording._fitted_to(files.normalisation) == drawn


# ---- the template itself


def test_the_template_and_its_tissues(nlin6, shared):
    load_template.cache_clear()
    found = load_template("MNI152NLin6Asym")
    assert found.space == "MNI152NLin6Asym"
    assert found.affine[0, 0] > 0
    mask = nib.load(nlin6 / MASK).get_fdata().T > 0
    assert (found.mask == ndimage.binary_fill_holes(mask)).all()
    assert make_grid(found).csf.sum() > 500  # the ventricles are in the brain
    fast = nib.load(shared / "templates/MNI152_T1_2mm_Brain_FAST_seg.nii.gz")
    labels = np.asarray(nib.as_closest_canonical(fast).dataobj).T
    for share, label, least in (
        (found.csf, 1, 0.4),
        (found.grey, 2, 0.75),
        (found.white, 3, 0.75),
    ):
        mine, theirs = (share > 0.5) & found.mask, (labels == label) & found.mask
        assert 2 * (mine & theirs).sum() / (mine.sum() + theirs.sum()) > least
    other = load_template("MNI152NLin2009aSym")  # whose tissues were carried over
    (t1w,) = template._carry([other.t1w], other.affine, found.affine, found.t1w.shape)
    assert np.corrcoef(t1w[found.mask], found.t1w[found.mask])[0, 1] > 0.87  # 0.76 in place


def test_template_spaces():
    with pytest.raises(BrainLMError, match="mine: in MNI152NLin2009cAsym, whose template is not"):
        space_of(Registered("mine", "MNI152NLin2009cAsym", "ab"))
    assert load_template("MNI152NLin2009aSym").space == "MNI152NLin2009aSym"
    with pytest.raises(BrainLMError, match="not known"):
        load_template("MNI305")
