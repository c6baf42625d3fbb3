"""A run is one recording of one participant, by folder and name; whatever is not is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import plant

from brainlm.cohort.index import read_refused, update_index
from brainlm.cohort.layouts import LAYOUTS, examine_folder
from brainlm.config import Cohort
from brainlm.errors import BrainLMError
from brainlm.paths import Results

GOOD = {
    "bids": "sub-99/func/sub-99_task-rest_bold.nii.gz",
    "fmriprep": "sub-99/func/sub-99_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz",
    "xcpd": "sub-99/func/sub-99_task-rest_space-MNI_seg-Glasser_stat-mean_timeseries.tsv",
    "parcels": "sub-99/func/sub-99_task-rest_atlas-A424_timeseries.npy",
    "tops": "sub-99/func/wdcrsub-99_task-rest_bold.nii",
}  # fmt: skip


def sort(folder: Path, layout: str = "bids", **more):
    """Ids found without sub-99's, and reasons by source; every planted file is one of the two."""
    found, left = examine_folder(Cohort(name="c", folder=folder, layout=layout, **more))
    ids = [item.recording_id for item in found if item.entities["sub"] != "99"]
    return ids, {item.source: (item.refused, item.left_out) for item in left}


@pytest.mark.parametrize("layout", GOOD)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("sub-99/func", "sub-01/func"), "disagree about the participant or session"),
        (("sub-99/func", "sub-99/ses-2/func"), None),
        (("sub-99/func/", "sub-99/ses-2/func/ses-1"), "disagree about the participant or session"),
        (("sub-99_", "sub-S_01_"), "not a key-value pair"),
        (("sub-99_", "sub-99_01_"), "not a key-value pair"),
        (("task-rest", "task-"), "not a key-value pair"),
        (("task-rest", "task-re st"), "not a key-value pair"),
        (("task-rest", "task-rest.v2"), "not a key-value pair"),
        (("task-rest", "task-rest_task-nback"), "appears twice"),
        (("task-rest", "run-1_task-rest_run-2"), "appears twice"),
    ],
)
def test_names_that_cannot_be_believed_are_refused(tmp_path, layout, change, words):
    plant(tmp_path, GOOD[layout])
    old, new = change
    if new.endswith("ses-1"):  # the folder says another session than the name
        path = GOOD[layout].replace("sub-99/func/", "sub-99/ses-2/func/").replace(
            "sub-99_", "sub-99_ses-1_"
        )  # fmt: skip
    elif old == "sub-99_":
        folder = "sub-S_01" if "S_01" in new else "sub-99"
        path = GOOD[layout].replace("sub-99/", f"{folder}/").replace(old, new)
    else:
        path = GOOD[layout].replace(old, new)
    plant(tmp_path, path)
    _, left = sort(tmp_path, layout)
    if words:
        refused, why = left[path]
        assert refused and words in why and len(why) < 200 and "remove" not in why
    else:
        assert path not in left


def test_a_session_that_only_the_folder_has_is_taken_from_it(tmp_path):
    plant(
        tmp_path,
        "sub-01/ses-1/func/sub-01_task-rest_bold.nii.gz",
        "sub-01/ses-2/func/sub-01_task-rest_bold.nii.gz",
    )
    assert sort(tmp_path)[0] == ["sub-01_ses-1_task-rest", "sub-01_ses-2_task-rest"]


def test_a_t1w_image_of_somebody_else_is_not_used(tmp_path):
    plant(tmp_path, "sub-01/func/sub-01_task-rest_bold.nii.gz", "sub-01/anat/sub-02_T1w.nii.gz")
    found, left = examine_folder(Cohort(name="c", folder=tmp_path))
    assert found[0].t1w is None and "another participant" in left[0].left_out


FMRIPREP = "space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ("bids", ("run-1_bold.nii.gz", "run-01_bold.nii.gz")),
        ("bids", ("run-2_bold.nii.gz", "run-002_bold.nii.gz")),
        ("bids", ("bold.nii.gz", "bold.nii")),
        ("fmriprep", (f"run-1_{FMRIPREP}", f"run-01_{FMRIPREP}")),
        ("parcels", ("run-1_atlas-A424_timeseries.npy", "run-01_atlas-A424_timeseries.tsv")),
    ],
)
def test_one_run_under_two_names_is_the_same_recording(tmp_path, layout, names):
    plant(tmp_path, GOOD[layout])
    paths = [f"sub-01/func/sub-01_task-rest_{name}" for name in names]
    plant(tmp_path, *paths)
    ids, left = sort(tmp_path, layout)
    assert ids == [] and set(left) == set(paths)
    assert all(refused and "same recording" in why for refused, why in left.values())


def test_runs_with_other_numbers_are_other_recordings(tmp_path):
    plant(
        tmp_path, *(f"sub-01/func/sub-01_task-rest_run-{n}_bold.nii.gz" for n in ("1", "02", "10"))
    )
    assert len(sort(tmp_path)[0]) == 3


@pytest.mark.parametrize("entity", ["rec", "proc", "feature", "reg", "nobodyknows"])
@pytest.mark.parametrize("layout", ["bids", "fmriprep", "parcels"])
def test_a_version_never_makes_a_second_recording(tmp_path, layout, entity):
    end = GOOD[layout].split("task-rest_")[1]
    run = "sub-01/func/sub-01_task-rest"
    plant(tmp_path, GOOD[layout], *(f"{run}_{entity}-{v}_{end}" for v in ("a", "b")))
    ids, left = sort(tmp_path, layout)
    assert ids == [] and len(left) == 2
    refused, why = left[f"{run}_{entity}-a_{end}"]
    assert refused and f"choose one with select: {{{entity}: a}}" in why
    ids, left = sort(tmp_path, layout, select={entity: "b"})
    assert ids == [f"sub-01_task-rest_{entity}-b"]
    assert not left[f"{run}_{entity}-a_{end}"][0]
    plant(tmp_path, f"{run}_{end}")
    assert sort(tmp_path, layout, select={entity: None})[0] == ["sub-01_task-rest"]


def test_a_single_version_is_a_recording_and_acquisitions_are_several(tmp_path):
    names = ("task-rest_rec-norm", "task-nback_acq-mb4", "task-nback_acq-mb8_dir-AP")
    plant(tmp_path, *(f"sub-01/func/sub-01_{name}_bold.nii.gz" for name in names))
    assert len(sort(tmp_path)[0]) == 3


def test_of_complex_images_the_magnitude_is_taken(tmp_path):
    parts = ("mag", "phase", "real", "imag")
    plant(tmp_path, *(f"sub-01/func/sub-01_task-rest_part-{p}_bold.nii.gz" for p in parts))
    plant(tmp_path, "sub-02/func/sub-02_task-rest_part-phase_bold.nii.gz", GOOD["bids"])
    ids, left = sort(tmp_path)
    assert ids == ["sub-01_task-rest_part-mag"]
    assert {why for _, why in left.values()} == {"phase, real or imaginary part"}
    assert len(left) == 4


def test_single_echoes_are_left_out_where_the_run_is_combined(tmp_path):
    run = "sub-01/func/sub-01_task-rest"
    echoes = [f"{run}_echo-{n}_desc-preproc_bold.nii.gz" for n in (1, 2, 3)]
    plant(tmp_path, f"{run}_{FMRIPREP}", *echoes)
    ids, left = sort(tmp_path, "fmriprep")
    assert ids == ["sub-01_task-rest"] and set(left) == set(echoes)
    assert all("single echoes" in why for _, why in left.values())


def test_the_only_image_in_template_space_is_a_recording_though_it_has_an_echo(tmp_path):
    plant(tmp_path, f"sub-01/func/sub-01_task-rest_echo-2_{FMRIPREP}", GOOD["fmriprep"])
    table = "sub-01/func/sub-01_task-rest_desc-confounds_timeseries.tsv"
    plant(tmp_path, table)
    found, _ = examine_folder(Cohort(name="c", folder=tmp_path, layout="fmriprep"))
    assert found[0].recording_id == "sub-01_task-rest_echo-2"
    assert LAYOUTS["fmriprep"].companions(tmp_path / found[0].source).motion == tmp_path / table


def test_raw_echoes_are_one_recording_or_one_is_chosen(tmp_path):
    names = [f"sub-01/func/sub-01_task-rest_echo-{n}_run-1_bold.nii.gz" for n in (1, 2, 10)]
    plant(tmp_path, *names[::-1], GOOD["bids"])
    found, _ = examine_folder(Cohort(name="c", folder=tmp_path, layout="bids"))
    (run,) = [item for item in found if "run" in item.entities]
    assert run.recording_id == "sub-01_task-rest_run-1" and run.source == names[0]
    assert set(names[1:]) <= set(run.companions)
    assert run.size == sum((tmp_path / name).stat().st_size for name in names)
    assert sort(tmp_path, select={"echo": 2})[0] == ["sub-01_task-rest_echo-2_run-1"]
    plant(tmp_path, *(name.replace("echo", "rec-norm_echo") for name in names))
    ids, left = sort(tmp_path)
    assert ids == [] and all("echo, rec" in why or "rec, echo" in why for _, why in left.values())


def test_confounds_are_matched_by_entities(tmp_path):
    func = "sub-01/func/sub-01_task-rest"
    image = f"{func}_run-1_rec-norm_space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz"
    plant(tmp_path, image, f"{func}_run-2_desc-confounds_timeseries.tsv",
          f"{func}_run-1_rec-raw_desc-confounds_timeseries.tsv",
          f"{func}_run-1_desc-tedana_timeseries.tsv")  # fmt: skip
    companions = LAYOUTS["fmriprep"].companions
    assert companions(tmp_path / image).motion is None
    for table in ("run-01_desc-confounds_regressors", "desc-confounds_run-1_timeseries",
                  "run-1_rec-norm_desc-confounds_timeseries"):  # fmt: skip
        plant(tmp_path, f"{func}_{table}.tsv")
        assert companions(tmp_path / image).motion.name == f"sub-01_task-rest_{table}.tsv"


@pytest.mark.parametrize("layout", ["bids", "fmriprep"])
def test_every_image_is_found_or_left_out(tmp_path, layout):
    run = "sub-01/func/sub-01_task-rest"
    names = [f"{run}_{end}" for end in (
        "bold.nii.gz", "sbref.nii.gz", "desc-brain_mask.nii.gz", FMRIPREP, "phase.nii.gz",
        "desc-smoothAROMAnonaggr_bold.nii.gz", "space-fsLR_den-91k_bold.dtseries.nii",
    )]  # fmt: skip
    stray = ["sub-01_task-rest_bold.nii.gz", "sub-01/sub-01_task-rest_bold.nii.gz",
             "sub-01/ses-1/sub-01_ses-1_task-rest_bold.nii.gz",
             "sub-02/Func/sub-02_task-rest_bold.nii.gz",
             "sub-03/ses-1/functional/sub-03_ses-1_task-rest_bold.nii.gz",
             "sub-01/func/discarded/sub-01_task-rest_bold.nii.gz"]  # fmt: skip
    plant(tmp_path, *names, *stray)
    found, left = examine_folder(Cohort(name="c", folder=tmp_path, layout=layout))
    assert len(found) == 1
    assert sorted([*(i.source for i in found), *(i.source for i in left)]) == sorted(names + stray)


def test_other_tasks_and_spaces_are_counted(tmp_path):
    run = "sub-01/func/sub-01_task"
    plant(tmp_path, f"{run}-rest_{FMRIPREP}", f"{run}-nback_{FMRIPREP}",
          f"{run}-rest_space-T1w_desc-preproc_bold.nii.gz")  # fmt: skip
    ids, left = sort(tmp_path, "fmriprep", task="rest")
    assert ids == ["sub-01_task-rest"]
    assert sorted(why for _, why in left.values()) == [
        "another space than MNI152NLin6Asym", "not task-rest",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("about", "use"),
    [
        ({"DatasetType": "derivative", "GeneratedBy": [{"Name": "fMRIPrep"}]}, "layout: fmriprep"),
        ({"DatasetType": "derivative", "GeneratedBy": [{"Name": "xcp_d"}]}, "layout: xcpd"),
        ({"DatasetType": "Derivative"}, "parcels"),
        ({"PipelineDescription": {"Name": "fMRIPrep"}}, "layout: fmriprep"),
        ({"DatasetType": "raw", "GeneratedBy": [{"Name": "heudiconv"}]}, None),
        ({"Name": "x"}, None),
        ({"DatasetType": 3, "GeneratedBy": "me"}, None),
        ([], None),
    ],
)
def test_derivatives_are_refused_as_raw_images(tmp_path, about, use):
    plant(tmp_path, GOOD["bids"])
    (tmp_path / "dataset_description.json").write_text(json.dumps(about))
    if use is None:
        assert sort(tmp_path)[0] == []
    else:
        with pytest.raises(BrainLMError, match="holds derivatives") as caught:
            sort(tmp_path)
        assert use in str(caught.value)


@pytest.mark.parametrize("place", ["sub-01", "sub-01/ses-1", "sub-01/func", "sub-01/ses-1/func"])
def test_a_folder_that_is_a_link_without_content_is_named(tmp_path, place):
    plant(tmp_path, GOOD["bids"])
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).symlink_to("../.git/annex/objects/aa")
    refused, why = sort(tmp_path)[1][place]
    assert refused and "get its content" in why


def test_what_is_refused_is_kept_for_the_summary(tmp_path):
    data = tmp_path / "data"
    plant(data, GOOD["bids"], "sub-02/func/sub-03_task-rest_bold.nii.gz")
    cohort, results = Cohort(name="c", folder=data), tmp_path / "results"
    change = update_index(cohort, results, "auto")
    assert change.total == 1 and any("sub-02/func/sub-03" in line for line in change.left_out)
    path = Results(results).refused("c")
    assert list(read_refused(path)) == ["sub-02/func/sub-03_task-rest_bold.nii.gz"]
    (data / "sub-02").rename(data / "sub-03")
    assert update_index(cohort, results, "auto").total == 2 and read_refused(path) == {}
