"""Every layout finds its recordings in a tree as the layout's source writes it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import get_args

import pytest
from fakes import plant

from brainlm.cohort.layouts import LAYOUTS, examine_folder, look
from brainlm.config import Cohort, LayoutName
from brainlm.errors import BrainLMError

ROOT = Path(__file__).resolve().parents[2]
FMRIPREP = "sub-01/ses-1/func/sub-01_ses-1_task-rest_run-1"
UKB = "1000223_20227_2_0/fMRI/rfMRI.ica"
HCP = "100307/MNINonLinear/Results/rfMRI_REST1_LR"
TREES = {
    "bids": [
        "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
        "sub-01/ses-1/func/sub-01_ses-1_task-rest_run-1_bold.nii.gz",
        "sub-01/ses-1/func/sub-01_ses-1_task-rest_run-1_sbref.nii.gz",
    ],
    "fmriprep": [
        "dataset_description.json",
        "sub-01.html",
        f"{FMRIPREP}_space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz",
        f"{FMRIPREP}_space-MNI152NLin6Asym_res-2_desc-brain_mask.nii.gz",
        f"{FMRIPREP}_space-MNI152NLin6Asym_res-2_boldref.nii.gz",
        f"{FMRIPREP}_space-T1w_desc-preproc_bold.nii.gz",
        f"{FMRIPREP}_desc-preproc_bold.nii.gz",
        f"{FMRIPREP}_desc-confounds_timeseries.tsv",
        "sub-01/ses-1/func/sub-01_ses-1_task-nback_space-MNI152NLin6Asym_res-2_desc-preproc_bold"
        ".nii.gz",
    ],
    "cifti": [
        f"{FMRIPREP}_space-fsLR_den-91k_bold.dtseries.nii",
        f"{FMRIPREP}_space-fsLR_den-91k_bold.json",
        f"{FMRIPREP}_space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz",
        f"{FMRIPREP}_desc-confounds_timeseries.tsv",
        "sub-01/ses-1/func/sub-01_ses-1_task-nback_space-fsLR_den-91k_bold.dtseries.nii",
        "sub-01/ses-1/func/sub-01_ses-1_task-nback_space-fsLR_den-91k_stat-alff.dtseries.nii",
    ],
    "xcpd": [
        f"{FMRIPREP}_space-MNI152NLin6Asym_seg-Glasser_stat-mean_timeseries.tsv",
        f"{FMRIPREP}_space-MNI152NLin6Asym_seg-Glasser_stat-mean_timeseries.json",
        f"{FMRIPREP}_space-MNI152NLin6Asym_seg-Glasser_stat-coverage_bold.tsv",
        f"{FMRIPREP}_space-MNI152NLin6Asym_seg-Glasser_stat-alff_bold.tsv",
        f"{FMRIPREP}_space-MNI152NLin6Asym_res-2_desc-denoised_bold.nii.gz",
        f"{FMRIPREP}_motion.tsv",
        f"{FMRIPREP}_outliers.tsv",
    ],
    "ukb": [
        f"{UKB}/filtered_func_data_clean.nii.gz",
        f"{UKB}/filtered_func_data.ica/melodic_IC.nii.gz",
        f"{UKB}/reg/example_func2standard_warp.nii.gz",
        f"{UKB}/mc/prefiltered_func_data_mcf.par",
        "1000223_20249_2_0/fMRI/tfMRI.feat/filtered_func_data.nii.gz",
        "1000999_20227_3_0/rfMRI.ica/filtered_func_data_clean.nii.gz",
    ],
    "hcp": [
        f"{HCP}/rfMRI_REST1_LR.nii.gz",
        f"{HCP}/rfMRI_REST1_LR_hp2000_clean.nii.gz",
        f"{HCP}/Movement_Regressors.txt",
        f"{HCP}/rfMRI_REST1_LR_SBRef.nii.gz",
        f"{HCP}/rfMRI_REST1_LR_Atlas_MSMAll.dtseries.nii",
        "100307/MNINonLinear/Results/tfMRI_WM_RL/tfMRI_WM_RL.nii.gz",
        "100307/MNINonLinear/T1w.nii.gz",
    ],
    "hcp-fix": [
        f"{HCP}/rfMRI_REST1_LR.nii.gz",
        f"{HCP}/rfMRI_REST1_LR_hp2000_clean.nii.gz",
        f"{HCP}/rfMRI_REST1_LR_hp2000_clean_vclean.txt",
        "HCA6002236_V1_MR/MNINonLinear/Results/rfMRI_REST2_AP/rfMRI_REST2_AP_hp0_clean.nii.gz",
    ],
    "parcels": [
        "sub-01/func/sub-01_task-rest_atlas-A424_timeseries.npy",
        "sub-02/func/sub-02_task-rest_atlas-A424_timeseries.tsv",
        "sub-02/func/sub-02_task-rest_desc-confounds_timeseries.tsv",
        "sub-03/func/sub-03_task-rest_atlas-A424_timeseries.ptseries.nii",
        "sub-03/func/sub-03_task-rest_atlas-A424_timeseries.json",
    ],
    "adni": [
        "dataset_description.json",
        "conversion_info/v0/fmri_paths.tsv",
        "sub-ADNI002S0295/sub-ADNI002S0295_sessions.tsv",
        "sub-ADNI002S0295/ses-M000/anat/sub-ADNI002S0295_ses-M000_T1w.nii.gz",
        "sub-ADNI002S0295/ses-M000/anat/sub-ADNI002S0295_ses-M000_FLAIR.nii.gz",
        "sub-ADNI002S0295/ses-M000/sub-ADNI002S0295_ses-M000_scans.tsv",
        "sub-ADNI002S0295/ses-M048/anat/sub-ADNI002S0295_ses-M048_T1w.nii.gz",
        "sub-ADNI002S0295/ses-M048/func/sub-ADNI002S0295_ses-M048_task-rest_bold.nii.gz",
        "sub-ADNI002S0295/ses-M048/func/sub-ADNI002S0295_ses-M048_task-rest_bold.json",
        "sub-ADNI002S0295/ses-M048/pet/sub-ADNI002S0295_ses-M048_trc-18FFDG_pet.nii.gz",
        "sub-ADNI002S0413/ses-M000/anat/sub-ADNI002S0413_ses-M000_T1w.nii.gz",
        "sub-ADNI002S0413/ses-M060/func/sub-ADNI002S0413_ses-M060_task-rest_bold.nii.gz",
        "sub-ADNI002S0413/ses-M072/func/sub-ADNI002S0413_ses-M072_task-rest_bold.nii.gz",
        "sub-ADNI002S0619/ses-M000/anat/sub-ADNI002S0619_ses-M000_T1w.nii.gz",
    ],
    "embarc": [
        "participants.tsv",
        "sub-CU0009/ses-1/anat/sub-CU0009_ses-1_T1w.nii.gz",
        "sub-CU0009/ses-1/dwi/sub-CU0009_ses-1_dwi.nii.gz",
        "sub-CU0009/ses-1/func/sub-CU0009_ses-1_task-rest_run-1_bold.nii.gz",
        "sub-CU0009/ses-1/func/sub-CU0009_ses-1_task-rest_run-1_bold.json",
        "sub-CU0009/ses-1/func/sub-CU0009_ses-1_task-rest_run-2_bold.nii.gz",
        "sub-CU0009/ses-1/func/sub-CU0009_ses-1_task-reward_bold.nii.gz",
        "sub-CU0009/ses-1/func/sub-CU0009_ses-1_task-reward_events.tsv",
        "sub-CU0009/ses-2/func/sub-CU0009_ses-2_task-rest_run-1_bold.nii.gz",
        "sub-TX0013/ses-1/func/sub-TX0013_ses-1_task-rest_run-1_bold.nii.gz",
    ],
    "tops": [
        "sub-tops001/func/wdcrsub-tops001_task-caps_run-02_bold.nii",
        "sub-tops001/func/swdcrsub-tops001_task-caps_run-02_bold.nii",
        "sub-tops001/func/dcrsub-tops001_task-caps_run-02_bold.nii",
        "sub-tops001/func/swdcrsub-tops001_task-rest_bold.nii",
        "sub-tops001/func/sub-tops001_task-rest_bold.nii",
    ],
    "yooattn": [
        "dataset_description.json",
        "sub-001.html",
        "sub-001/anat/sub-001_desc-preproc_T1w.nii.gz",
        "sub-001/figures/sub-001_task-MOT_run-1_desc-carpetplot_bold.svg",
        *(
            f"sub-001/func/sub-001_task-{task}_{end}"
            for task in ("gradCPT_run-1", "MOT_run-1", "MOT_run-2", "VSTM_run-1", "rest", "movie")
            for end in (
                "space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz",
                "space-MNI152NLin6Asym_res-2_desc-brain_mask.nii.gz",
                "space-MNI152NLin6Asym_res-2_boldref.nii.gz",
                "space-fsLR_den-91k_bold.dtseries.nii",
                "desc-confounds_timeseries.tsv",
            )
        ),
    ],
}
FOUND = {
    "bids": ["sub-01_ses-1_task-rest_run-1"],
    "fmriprep": ["sub-01_ses-1_task-nback", "sub-01_ses-1_task-rest_run-1"],
    "cifti": ["sub-01_ses-1_task-nback", "sub-01_ses-1_task-rest_run-1"],
    "xcpd": ["sub-01_ses-1_task-rest_run-1"],
    "ukb": [
        "sub-1000223_ses-2_task-facesshapesemotion",
        "sub-1000223_ses-2_task-rest",
        "sub-1000999_ses-3_task-rest",
    ],
    "hcp": ["sub-100307_task-REST_dir-LR_run-1", "sub-100307_task-WM_dir-RL"],
    "hcp-fix": [
        "sub-100307_task-REST_dir-LR_run-1",
        "sub-HCA6002236_ses-V1_task-REST_dir-AP_run-2",
    ],
    "parcels": ["sub-01_task-rest", "sub-02_task-rest", "sub-03_task-rest"],
    "adni": [
        "sub-ADNI002S0295_ses-M048_task-rest",
        "sub-ADNI002S0413_ses-M060_task-rest",
        "sub-ADNI002S0413_ses-M072_task-rest",
    ],
    "embarc": [
        "sub-CU0009_ses-1_task-rest_run-1",
        "sub-CU0009_ses-1_task-rest_run-2",
        "sub-CU0009_ses-1_task-reward",
        "sub-CU0009_ses-2_task-rest_run-1",
        "sub-TX0013_ses-1_task-rest_run-1",
    ],
    "tops": ["sub-tops001_task-caps_run-02", "sub-tops001_task-rest"],
    "yooattn": [
        "sub-001_task-MOT_run-1", "sub-001_task-MOT_run-2", "sub-001_task-VSTM_run-1",
        "sub-001_task-gradCPT_run-1", "sub-001_task-movie", "sub-001_task-rest",
    ],
}  # fmt: skip


def find(folder: Path, layout: str, **more):
    return examine_folder(Cohort(name="c", folder=folder, layout=layout, **more))[0]


def companions(folder: Path, layout: str, number: int = 0):
    source = find(folder, layout)[number].source
    return LAYOUTS[layout].companions(folder / source)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_finds_what_its_tree_holds(tmp_path, name):
    plant(tmp_path, *TREES[name])
    found = find(tmp_path, name)
    assert [item.recording_id for item in found] == FOUND[name]
    assert all((tmp_path / item.source).is_file() for item in found)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_without_recordings_says_what_was_expected(tmp_path, name):
    (tmp_path / "sub-01").mkdir()
    with pytest.raises(BrainLMError) as error:
        find(tmp_path, name)
    assert LAYOUTS[name].tree in str(error.value)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_in_the_configuration_and_in_the_documentation(name):
    assert name in get_args(LayoutName) and len(get_args(LayoutName)) == len(LAYOUTS)
    assert f"## `{name}`" in (ROOT / "docs/layouts.md").read_text()


@pytest.mark.parametrize("name", LAYOUTS)
def test_entries_to_skip_are_not_looked_at(tmp_path, name):
    plant(tmp_path, *TREES[name])
    cohort = Cohort(name="c", folder=tmp_path, layout=name)
    entries = {item.source.split("/")[0] for item in find(tmp_path, name)}
    gone = min(entries)
    left = examine_folder(cohort, {gone})[0]
    assert {item.source.split("/")[0] for item in left} == entries - {gone}


def test_a_visit_without_an_anatomy_takes_the_participants_other_one(tmp_path):
    for name in ("adni", "embarc"):
        plant(tmp_path / name, *TREES[name])
    first, second, _ = find(tmp_path / "adni", "adni")
    assert first.t1w.endswith("ses-M048_T1w.nii.gz") and second.t1w.endswith("ses-M000_T1w.nii.gz")
    anatomies = [item.t1w for item in find(tmp_path / "embarc", "embarc")]
    assert anatomies == ["sub-CU0009/ses-1/anat/sub-CU0009_ses-1_T1w.nii.gz"] * 4 + [None]


def test_one_task_alone(tmp_path):
    for name, task in (("hcp", "WM"), ("ukb", "rest"), ("fmriprep", "nback"), ("tops", "rest")):
        plant(tmp_path / name, *TREES[name])
        assert {item.entities["task"] for item in find(tmp_path / name, name, task=task)} == {task}


def test_one_of_several_spaces_is_chosen_by_name(tmp_path):
    plant(tmp_path, *TREES["fmriprep"])
    plant(tmp_path, f"{FMRIPREP}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz")
    with pytest.raises(BrainLMError, match=r"several forms .*choose one.*space:"):
        find(tmp_path, "fmriprep")
    found = find(tmp_path, "fmriprep", space="MNI152NLin2009cAsym")
    assert [item.size for item in found] == [-1, 1]  # nback is not in that space: it is counted
    assert found[0].source == (
        "sub-01/ses-1/func/sub-01_ses-1_task-nback_space-MNI152NLin2009cAsym_desc-preproc_bold"
        ".nii.gz"
    )
    assert len(find(tmp_path, "fmriprep", space="MNI152NLin6Asym:res-2")) == 2
    assert len(find(tmp_path, "fmriprep", space="MNI152NLin6Asym")) == 2
    with pytest.raises(BrainLMError, match=r"expected one of .*NLin6Asym"):
        find(tmp_path, "fmriprep", space="MNI152")


def test_native_resolution_can_be_chosen_next_to_another(tmp_path):
    run = "sub-01/func/sub-01_task-rest_space-MNI152NLin6Asym"
    plant(tmp_path, *[f"{run}{res}_desc-preproc_bold.nii.gz" for res in ("", "_res-2")])
    sources = {
        space: [item.source for item in find(tmp_path, "fmriprep", space=space)]
        for space in ("MNI152NLin6Asym", "MNI152NLin6Asym:res-2")
    }
    assert sources == {
        "MNI152NLin6Asym": [f"{run}_desc-preproc_bold.nii.gz"],
        "MNI152NLin6Asym:res-2": [f"{run}_res-2_desc-preproc_bold.nii.gz"],
    }


def test_participants_who_are_only_in_another_space_are_counted(tmp_path):
    names = {"01": "space-MNI152NLin6Asym_", "02": "space-T1w_", "03": "", "04": "space-MNI_"}
    plant(
        tmp_path,
        *[f"sub-{n}/func/sub-{n}_task-rest_{s}desc-preproc_bold.nii.gz" for n, s in names.items()]
        + ["sub-05/func/sub-05_task-rest_echo-1_desc-preproc_bold.nii.gz"],
    )
    found = find(tmp_path, "fmriprep", space="MNI152NLin6Asym")
    assert [(item.entities["sub"], item.size) for item in found] == [
        ("01", 1), ("02", -1), ("03", -1), ("04", -1),
    ]  # fmt: skip
    assert all("space-MNI152NLin6Asym_desc-preproc" in item.source for item in found)


def test_a_template_of_an_age_is_no_part_of_a_recordings_name(tmp_path):
    run = "sub-01/func/sub-01_task-rest"
    template = "space-MNIPediatricAsym_cohort-2_res-2"
    plant(
        tmp_path,
        *[
            f"{run}_{template}_desc-preproc_bold.nii.gz",
            f"{run}_desc-confounds_timeseries.tsv",
            "sub-02/func/sub-02_task-rest_space-MNIPediatricAsym_cohort-3_res-2_desc-preproc_bold"
            ".nii.gz",
        ],
    )
    found = find(tmp_path, "fmriprep", space="MNIPediatricAsym")  # each in the one of their age
    assert [item.recording_id for item in found] == ["sub-01_task-rest", "sub-02_task-rest"]
    assert [item.size for item in found] == [1, 1]
    image = LAYOUTS["fmriprep"].companions(tmp_path / found[0].source)
    assert image.space == "MNIPediatricAsym" and image.motion is not None
    chosen = find(tmp_path, "fmriprep", space="MNIPediatricAsym:cohort-2")
    assert [item.size for item in chosen] == [1, -1]


def test_one_of_several_parcellations_is_chosen_by_name(tmp_path):
    plant(tmp_path, *TREES["xcpd"])
    plant(tmp_path, f"{FMRIPREP}_space-MNI152NLin6Asym_seg-Tian_stat-mean_timeseries.tsv")
    with pytest.raises(BrainLMError, match=r"Glasser.*, Tian.*segmentation: Glasser"):
        find(tmp_path, "xcpd")
    assert ["Tian" in r.source for r in find(tmp_path, "xcpd", segmentation="Tian")] == [True]


def test_a_space_or_description_of_series_is_chosen_by_name(tmp_path):
    series = [
        f"{FMRIPREP}_space-{space}_seg-Glasser_stat-mean_desc-{desc}_timeseries.tsv"
        for space in ("MNI152NLin6Asym", "MNI152NLin2009cAsym")
        for desc in ("denoised", "interpolated")
    ]
    plant(tmp_path, *series)
    with pytest.raises(BrainLMError, match=r"segmentation: .*Glasser:space-MNI152NLin6Asym:desc-"):
        find(tmp_path, "xcpd", segmentation="Glasser:desc-denoised")
    chosen = "Glasser:desc-interpolated:space-MNI152NLin6Asym"
    assert [item.source for item in find(tmp_path, "xcpd", segmentation=chosen)] == [series[1]]


def test_runs_combined_are_not_taken_next_to_the_runs(tmp_path):
    end = "space-MNI152NLin6Asym_seg-Glasser_stat-mean_timeseries.tsv"
    middle = ("rest_run-1", "rest_run-2", "rest", "nback_dir-AP_run-1", "nback", "motor")
    plant(tmp_path, *[f"sub-01/func/sub-01_task-{name}_{end}" for name in middle])
    recordings, left_out = look(Cohort(name="c", folder=tmp_path, layout="xcpd"))
    assert [item.recording_id.removeprefix("sub-01_task-") for item in recordings] == [
        "motor", "nback_dir-AP_run-1", "rest_run-1", "rest_run-2",
    ]  # fmt: skip
    assert left_out[0].startswith("left out, combined runs that are also there singly: 2 ")


def test_what_lies_beside(tmp_path):
    for name in ("fmriprep", "ukb", "hcp", "hcp-fix", "xcpd"):
        plant(tmp_path / name, *TREES[name])
    image = companions(tmp_path / "fmriprep", "fmriprep", 1)
    assert image.space == "MNI152NLin6Asym"
    assert image.motion.name.endswith("run-1_desc-confounds_timeseries.tsv")
    assert companions(tmp_path / "fmriprep", "fmriprep", 0).motion is None  # nback has none
    rest, task = (companions(tmp_path / "ukb", "ukb", k) for k in (1, 0))
    assert rest.denoised and rest.warp.is_file() and rest.motion.name.endswith(".par")
    assert not task.denoised
    assert not companions(tmp_path / "hcp", "hcp").denoised
    assert companions(tmp_path / "hcp", "hcp").motion.name == "Movement_Regressors.txt"
    fix = LAYOUTS["hcp-fix"].companions(tmp_path / "hcp-fix" / HCP / "x.nii.gz")
    assert fix.denoised and fix.space == "MNI152NLin6Asym" and fix.motion is None
    assert companions(tmp_path / "xcpd", "xcpd").motion.name.endswith("_motion.tsv")


def test_packed_and_empty_bulk_folders_are_counted(tmp_path):
    plant(tmp_path, *TREES["ukb"])
    for name in ("1000223_20227_2_0.zip", "1000333_20227_2_0.zip"):  # the first is unpacked
        with zipfile.ZipFile(tmp_path / name, "w") as packed:
            packed.writestr("fMRI/rfMRI.nii.gz", b"x")
    (tmp_path / "1000444_20227_2_0/fMRI").mkdir(parents=True)
    found = {item.entities["sub"]: item for item in find(tmp_path, "ukb", task="rest")}
    assert set(found) == {"1000223", "1000999", "1000333", "1000444"}
    assert found["1000333"].source == "1000333_20227_2_0.zip"
    assert found["1000444"].size == -1  # fails as unreadable when it is read


def test_names_of_lifespan_runs_and_of_cleaned_images(tmp_path):
    results = "HCD0001305_V1_MR/MNINonLinear/Results"
    runs = ("rfMRI_REST1a_AP", "rfMRI_REST1b_PA", "tfMRI_GUESSING_PA")
    plant(tmp_path / "hcp", *[f"{results}/{run}/{run}.nii.gz" for run in runs])
    assert [item.recording_id.split("_", 2)[2] for item in find(tmp_path / "hcp", "hcp")] == [
        "task-GUESSING_dir-PA", "task-REST_dir-AP_run-1a", "task-REST_dir-PA_run-1b",
    ]  # fmt: skip
    run = f"{results}/rfMRI_REST1_AP/rfMRI_REST1_AP_hp0_clean"
    plant(tmp_path / "fix", f"{run}.nii.gz", f"{run}_rclean_tclean.nii.gz")
    assert [item.source for item in find(tmp_path / "fix", "hcp-fix")] == [
        f"{run}_rclean_tclean.nii.gz"
    ]


def test_run_folders_without_an_image_are_counted(tmp_path):
    results = "100307/MNINonLinear/Results"
    plant(
        tmp_path,
        *[
            f"{results}/rfMRI_REST1_LR/rfMRI_REST1_LR_Atlas.dtseries.nii",
            f"{results}/rfMRI_REST2_LR/rfMRI_REST2_LR.nii.gz",
            f"{results}/rfMRI_REST2_LR/rfMRI_REST2_LR_hp2000_clean.nii.gz",
            f"{results}/tfMRI_WM_LR/tfMRI_WM_LR.nii.gz",  # FIX cleans rest
            f"{results}/tfMRI_WM/tfMRI_WM_hp200_s2_level2.fsf",  # an analysis of both runs
        ],
    )
    lost = {
        name: [item.source for item in find(tmp_path, name) if item.size == -1]
        for name in ("hcp", "hcp-fix")
    }
    first = f"{results}/rfMRI_REST1_LR/rfMRI_REST1_LR"
    assert lost == {"hcp": [f"{first}.nii.gz"], "hcp-fix": [f"{first}_hp2000_clean.nii.gz"]}


def test_the_mean_image_of_spm_is_no_recording(tmp_path):
    func = "sub-tops001/func"
    end = "sub-tops001_task-caps_run-02_bold.nii"
    for k in range(8):  # directories list their files in any order
        names = [f"{func}/{name}{end}" for name in ("wmeandcr", "swmean", "swdcr", "wdcr")]
        plant(tmp_path / str(k), *names[k % 4 :] + names[: k % 4])
        assert [item.source for item in find(tmp_path / str(k), "tops")] == [f"{func}/wdcr{end}"]
    plant(tmp_path / "0", f"{func}/wr{end}")
    with pytest.raises(BrainLMError, match="same recording"):
        find(tmp_path / "0", "tops")


def test_a_flat_folder_of_series(tmp_path):
    plant(tmp_path, "A424_example.dat", "b.npy", "c.tsv", "d.1.ptseries.nii", "participants.tsv",
          "notes.txt")  # fmt: skip
    assert [r.recording_id for r in find(tmp_path, "parcels")] == ["sub-A424example", "sub-b",
                                                                  "sub-c", "sub-d1"]  # fmt: skip


def test_files_of_one_participant_in_a_flat_folder_are_one_participant(tmp_path):
    names = [
        "1000223_20227_2_0_rs.dat", "1000223_20227_3_0_rs.dat", "1000223_20249_2_0_tf.dat",
        "sub-01_ses-1_task-rest_atlas-A424_timeseries.npy",
        "sub-01_ses-2_task-rest_atlas-A424_timeseries.npy", "sub-02_task-nback.tsv",
    ]  # fmt: skip
    plant(tmp_path, *names)
    found = find(tmp_path, "parcels")
    assert [item.recording_id for item in found] == [
        "sub-01_ses-1_task-rest", "sub-01_ses-2_task-rest", "sub-02_task-nback",
        "sub-1000223_ses-2_task-facesshapesemotion", "sub-1000223_ses-2_task-rest",
        "sub-1000223_ses-3_task-rest",
    ]  # fmt: skip
    assert {item.entities["sub"] for item in found} == {"01", "02", "1000223"}
    assert len(find(tmp_path, "parcels", task="rest")) == 4


def test_files_of_a_flat_folder_that_are_no_series_are_left_out_and_counted(tmp_path):
    tables = {
        "phenotypes.tsv": "participant_id\tage\n0050642\t33\n",
        "ukb.tsv": "eid\t31-0.0\n1000223\t1\n",
        "sub-01_task-rest_events.tsv": "onset\tduration\n0\t1\n",
        "sub-01_task-rest_desc-confounds_timeseries.tsv": "trans_x\trot_x\n0\t1\n",
        "A424_Coordinates.dat": "1 0 0 0\n",
        "demo424_labels.tsv": "index\tname\n1\ta\n",
        "0050642.tsv": "p1\tp2\n1\t2\n",
        "sub-01_task-rest.dat": "1 2\n",
    }
    for name, text in tables.items():
        (tmp_path / name).write_text(text)
    cohort = Cohort(name="c", folder=tmp_path, layout="parcels")
    recordings, left_out = look(cohort)
    assert [item.source for item in recordings] == ["0050642.tsv", "sub-01_task-rest.dat"]
    text = "; ".join(left_out)
    assert "a table of participants or recordings: 2 (phenotypes.tsv, ukb.tsv)" in text
    assert "a file of an atlas: 2 (A424_Coordinates.dat, demo424_labels.tsv)" in text
    assert "not a parcel series (by its name): 2" in text
    assert [item.source for item in find(tmp_path, "parcels", task="rest")] == [
        "sub-01_task-rest.dat"
    ]
    only = tmp_path / "only"
    plant(only, "0050642.npy")
    with pytest.raises(BrainLMError, match=r"no task in its name: 1 \(0050642.npy\)"):
        find(only, "parcels", task="rest")


def test_series_anywhere_below_a_participant_are_found_or_said_to_be_left_out(tmp_path):
    plant(
        tmp_path,
        *[
            "sub-01/func/sub-01_task-rest_atlas-A424_timeseries.dat",
            "sub-02/sub-02_task-rest_atlas-A424_timeseries.npy",
            "sub-03/ses-1/sub-03_ses-1_task-rest_atlas-A424_timeseries.tsv",
            "sub-04/func/sub-04_task-rest_timeseries.npy",
            "sub-04/func/sub-04_task-rest_desc-confounds_timeseries.tsv",
        ],
    )
    recordings, left_out = look(Cohort(name="c", folder=tmp_path, layout="parcels"))
    assert [item.entities["sub"] for item in recordings] == ["01", "02", "03"]
    assert left_out == [
        "left out, no atlas- or seg- in its name: 1 (sub-04/func/sub-04_task-rest_timeseries.npy)",
        "left out, not a parcel series (by its name): 1 "
        "(sub-04/func/sub-04_task-rest_desc-confounds_timeseries.tsv)",
    ]


def test_ids_of_tables_become_labels():
    assert LAYOUTS["adni"].label("002_S_0295") == LAYOUTS["adni"].label("sub-ADNI002S0295")
    assert LAYOUTS["ukb"].label("1000223") == "1000223"
    assert LAYOUTS["embarc"].label("NDAR_INV01") == "NDARINV01"
