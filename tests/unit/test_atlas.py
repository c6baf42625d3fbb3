import hashlib
import shutil

import numpy as np
import pytest

from brainlm import atlas as module
from brainlm.atlas import load_atlas, registered
from brainlm.errors import BrainLMError

ENTRY = """
name: Toy
space: MNI152NLin6Asym
num_parcels: 3
files:
  image: {{name: toy.nii, sha256: {image}, url: "{url}"}}
  coordinates: {{name: toy.dat, sha256: {coordinates}}}
  labels: {{name: toy.tsv, sha256: {labels}, column: name}}
source: nobody
licence: none
"""


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A registry with one entry, its files in a folder, and the image at a URL too."""
    registry, folder, remote = (tmp_path / n for n in ("registry", "files", "remote"))
    for path in (registry, folder, remote):
        path.mkdir()
    files = {
        "toy.nii": b"an image",
        "toy.dat": b"1 10 20 30\n2 -4 0 8\n3 0 0 0\n",
        "toy.tsv": b"index\tname\n1\ta\n2\tb\n3\tc\n",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (remote / "toy.nii").write_bytes(files["toy.nii"])
    text = ENTRY.format(
        image=digest(files["toy.nii"]), coordinates=digest(files["toy.dat"]),
        labels=digest(files["toy.tsv"]), url=(remote / "toy.nii").as_uri(),
    )  # fmt: skip
    (registry / "toy.yaml").write_text(text)
    monkeypatch.setattr(module, "REGISTRY", registry)
    return folder, remote


def test_files_in_the_folder_are_checked_and_read(toy):
    folder, _ = toy
    atlas = load_atlas("toy", folder, download=False)
    assert (atlas.num_parcels, atlas.names) == (3, ("a", "b", "c"))
    np.testing.assert_array_equal(atlas.coordinates[1], [-4, 0, 8])
    assert atlas.image_sha256 == digest(b"an image")


def test_a_missing_image_is_downloaded_once(toy):
    folder, remote = toy
    (folder / "toy.nii").unlink()
    assert load_atlas("toy", folder).image.read_bytes() == b"an image"
    shutil.rmtree(remote)
    assert load_atlas("toy", folder).image.exists()


def test_a_download_that_is_another_file_is_not_kept(toy):
    folder, remote = toy
    (folder / "toy.nii").unlink()
    (remote / "toy.nii").write_bytes(b"an error page")
    with pytest.raises(BrainLMError, match="not kept"):
        load_atlas("toy", folder)
    assert sorted(p.name for p in folder.iterdir()) == ["toy.dat", "toy.tsv"]


def test_without_network_the_error_says_what_to_do(toy):
    folder, remote = toy
    (folder / "toy.nii").unlink()
    shutil.rmtree(remote)
    with pytest.raises(BrainLMError, match="copy the file there by hand"):
        load_atlas("toy", folder)


def test_a_changed_file_is_refused(toy):
    folder, _ = toy
    (folder / "toy.nii").write_bytes(b"another image")
    with pytest.raises(BrainLMError, match=r"toy\.nii: expected sha256 .* found"):
        load_atlas("toy", folder)


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path):
    assert {"a424", "demo424", "cc200"} <= set(registered())
    with pytest.raises(BrainLMError, match="did you mean 'a424'"):
        load_atlas("a242", tmp_path)


def test_a424_as_it_is_distributed(shared):
    atlas = load_atlas("a424", shared / "atlases", download=False)
    assert atlas.space == "MNI152NLin6Asym"
    assert atlas.coordinates.shape == (424, 3)
    np.testing.assert_array_equal(atlas.coordinates[0], [14, -78, 4])
