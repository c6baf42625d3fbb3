"""demo424 is the same on every machine, balanced, symmetric, and accepted by the registry."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from brainlm.atlas import load_atlas
from brainlm.errors import BrainLMError
from brainlm.simulate.demo_atlas import NETWORKS, build_demo_atlas, parcellate_template


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("atlas")
    build_demo_atlas(path)
    return path


def test_registry_accepts_what_is_built(folder):
    """The checksums in atlases/demo424.yaml are those of the bytes written here."""
    atlas = load_atlas("demo424", folder, download=False)
    assert atlas.num_parcels == len(atlas.names) == len(set(atlas.names)) == 424
    assert atlas.space == "MNI152NLin2009aSym"
    assert np.isfinite(atlas.coordinates).all()


def test_registry_builds_it_when_absent(tmp_path):
    assert load_atlas("demo424", tmp_path).image.exists()


def test_changed_atlas_is_refused(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    image = bytearray((tmp_path / "demo424.nii").read_bytes())
    image[-1000] ^= 1
    (tmp_path / "demo424.nii").write_bytes(image)
    with pytest.raises(BrainLMError, match="sha256"):
        load_atlas("demo424", tmp_path, download=False)


def test_image_has_every_label_once_and_a_named_space(folder):
    import nibabel

    image = nibabel.load(folder / "demo424.nii")
    labels = np.asarray(image.dataobj)
    assert labels.dtype == np.int16
    assert np.array_equal(np.unique(labels), np.arange(425))
    np.testing.assert_array_equal(image.header.get_zooms(), (2, 2, 2))
    np.testing.assert_array_equal(image.get_qform(), image.affine)
    assert image.header["sform_code"] == image.header["qform_code"] == 4


def test_parcels_are_balanced_mirror_images_in_grey_matter():
    atlas = parcellate_template()
    sizes = np.bincount(atlas.labels.ravel(), minlength=425)[1:]
    assert np.ptp(sizes) <= 1
    left = np.where((atlas.labels > 0) & (atlas.labels <= 212), atlas.labels, 0)
    right = np.where(atlas.labels > 212, atlas.labels - 212, 0)
    np.testing.assert_array_equal(left, right[::-1])
    assert (atlas.coordinates[:212, 0] < 0).all()
    np.testing.assert_allclose(atlas.coordinates[:212] * (-1, 1, 1), atlas.coordinates[212:])


def test_coordinates_are_centres_of_mass():
    from scipy import ndimage

    atlas = parcellate_template()
    centres = ndimage.center_of_mass(atlas.labels > 0, atlas.labels, np.arange(1, 425))
    world = np.array(centres) @ atlas.affine[:3, :3].T + atlas.affine[:3, 3]
    np.testing.assert_allclose(world, atlas.coordinates, atol=1e-9)


def test_labels_name_hemisphere_and_network(folder):
    with open(folder / "demo424_labels.tsv", newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    assert [row["hemisphere"] for row in rows] == ["L"] * 212 + ["R"] * 212
    networks = np.array([int(row["network"]) for row in rows])
    assert (np.bincount(networks, minlength=8)[1:] >= 30).all()
    for row in rows:
        assert NETWORKS[int(row["network"]) - 1] in row["name"]


def test_known_places_belong_to_known_networks():
    """Occipital pole: visual. Hand knob: somatomotor. Posterior cingulate: default mode."""
    atlas = parcellate_template()
    for point, name in (
        ((8, -92, 0), "Visual"),
        ((38, -26, 58), "Somatomotor"),
        ((-6, -52, 28), "Default"),
    ):
        nearest = np.argmin(((atlas.coordinates - point) ** 2).sum(axis=1))
        assert NETWORKS[atlas.networks[nearest] - 1] == name
