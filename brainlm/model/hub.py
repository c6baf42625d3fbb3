"""Models in and out: our folders, Hugging Face repositories, and the published layouts."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import BrainLMError
from ..files import atomic_path, describe_absent, read_json, write_json, write_text
from ..shards.scaling import Scaling
from .card import set_license, write_card
from .published import convert
from .shape import BrainLMConfig

FORMAT = 1
HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
FILES = ("config.json", "model.safetensors", "pytorch_model.bin", "scaling.json",
         "gaussian.safetensors")  # fmt: skip
#: The file in every model folder that transformers runs with ``trust_remote_code=True``. It is
#: the same in all folders, and only imports this package.
CODE_FILE = "modeling_brainlm.py"
CODE = '''"""Opens this folder with AutoModel.from_pretrained(..., trust_remote_code=True)."""

try:
    from brainlm.model.automodel import make_classes
except ImportError as error:
    raise ImportError(
        "this model runs in the package brainlm-pipeline, which does not import "
        f"({error}); install it: pip install 'brainlm-pipeline[hf]'"
    ) from error

BrainLMAutoConfig, BrainLMAutoModel, BrainLMAutoModelForPreTraining = make_classes()
'''
AUTO_MAP = {
    "AutoConfig": "modeling_brainlm.BrainLMAutoConfig",
    "AutoModel": "modeling_brainlm.BrainLMAutoModel",
    "AutoModelForPreTraining": "modeling_brainlm.BrainLMAutoModelForPreTraining",
}


class Shared(nn.Module):
    """What a model needs to go to a folder or the hub and to come from there."""

    config: BrainLMConfig
    scaling: Scaling | None

    def save_pretrained(
        self, folder, scaling: Scaling | None = None, card: str | None = None
    ) -> None:
        """Write a self-contained model folder; each file appears whole, config.json last.

        config.json, model.safetensors (coordinates included), scaling.json where the model has
        one, README.md, and the code file that transformers runs.

        Parameters
        ----------
        scaling : Scaling, optional
            Kept with the model; default the model's own.
        card : str, optional
            README.md; default :func:`brainlm.model.card.write_card`.
        """
        folder, scaling = Path(folder), scaling or self.scaling
        if scaling is not None and scaling.num_parcels != self.config.num_parcels:
            raise BrainLMError(f"{folder}: the model has {self.config.num_parcels} parcels, the "
                               f"scaling {scaling.num_parcels}")  # fmt: skip
        self.scaling = scaling
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        with atomic_path(folder / "model.safetensors") as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
        if scaling is None:
            (folder / "scaling.json").unlink(missing_ok=True)  # of another model
        else:
            scaling.save(folder / "scaling.json")
        write_text(folder / CODE_FILE, CODE)
        write_text(folder / "README.md", write_card(self) if card is None else card)
        facts = {"architectures": ["BrainLM"], "model_type": "brainlm", "format": FORMAT,
                 "auto_map": AUTO_MAP}  # fmt: skip
        shape = dataclasses.asdict(self.config)
        if not shape["preprocess"]:  # versions before it read such a folder too
            del shape["preprocess"]
        write_json(folder / "config.json", facts | shape)

    def push_to_hub(self, repository: str, **options) -> str:
        """Upload the model as :meth:`save_pretrained` writes it; see :func:`push_to_hub`."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push_to_hub(folder, repository, **options)

    @classmethod
    def from_pretrained(cls, path_or_hub_id, subfolder: str | None = None, *, coordinates=None,
                        scaling: Scaling | None = None, **hub) -> Self:  # fmt: skip
        """Open a model in evaluation mode, with its ``.scaling``.

        Parameters
        ----------
        path_or_hub_id : path or str
            A local folder, or ``owner/name`` on the Hugging Face hub (or in its local cache).
        subfolder : str, optional
            e.g. ``old_13M``, ``vitmae_111M`` or ``vitmae_650M`` of the published repository.
        coordinates : array [R, 3], optional
            MNI mm in atlas order; required for the published layouts, which do not carry them.
        scaling : Scaling, optional
            For the published layouts, whose scaling was never released.
        hub
            ``revision``, ``cache_dir``, ``token``, ``local_files_only``, ``force_download``, as
            :func:`huggingface_hub.snapshot_download` takes them.

        Raises
        ------
        BrainLMError
            Nothing there; a layout that is not known; any tensor missing, extra or of another
            shape; a scaling for a model that carries its own, or of another number of parcels.
        """
        folder = _locate(path_or_hub_id, subfolder, hub)
        values, weights = read_json(folder / "config.json"), read_weights(folder)
        if values.get("model_type") == "brainlm" and "BrainLM" in values.get("architectures", ()):
            config, coordinates = _ours(folder, values, weights)
        else:
            config, weights = convert(folder, values, weights, coordinates)
            coordinates = weights["coordinates"]
        model = cls(config, coordinates)
        load_strictly(model, weights, folder)
        model.scaling = _choose_scaling(folder, scaling, config.num_parcels)
        return model.eval()


def _choose_scaling(folder: Path, given: Scaling | None, parcels: int) -> Scaling | None:
    path = folder / "scaling.json"
    if given is not None and path.exists():
        raise BrainLMError(f"{folder}: carries the scaling that it was trained with; another one "
                           "would change what the model sees: leave it out")  # fmt: skip
    scaling = Scaling.load(path) if path.exists() else given
    if scaling is not None and scaling.num_parcels != parcels:
        raise BrainLMError(f"{folder}: the model has {parcels} parcels, the scaling "
                           f"{scaling.num_parcels}: it belongs to another atlas")  # fmt: skip
    return scaling


def _ours(folder: Path, values: dict, weights: dict) -> tuple[BrainLMConfig, Tensor | None]:
    """Shape and coordinates of a folder of our own."""
    if values.get("format") != FORMAT:
        raise BrainLMError(f"{folder}: model format {values.get('format')}, this version reads "
                           f"{FORMAT}; update brainlm-pipeline")  # fmt: skip
    names = {field.name for field in dataclasses.fields(BrainLMConfig)}
    unknown = set(values) - names - {"architectures", "model_type", "format", "auto_map"}
    if unknown:
        raise BrainLMError(f"{folder}/config.json: unknown keys {sorted(unknown)}")
    values = {key: value for key, value in values.items() if key in names}
    if values.get("image_size"):
        values["image_size"] = tuple(values["image_size"])
    old = "classes" not in values
    values["classes"] = tuple(_classes_of_run(folder) if old else values["classes"])
    values["ranges"] = {key: tuple(five) for key, five in values.get("ranges", {}).items()}
    shape = BrainLMConfig(**values)
    points = torch.zeros(shape.num_parcels, 3) if shape.has_coordinates else None
    found = weights.get("coordinates")
    if points is not None and found is not None and found.shape == points.shape:
        points = found  # the order of an image's rows follows from them
    return shape, points


def _classes_of_run(folder: Path) -> list[str]:
    """Classes of a classifier whose config.json is older than their place there."""
    if not (folder / "run.json").exists():
        return []
    run = read_json(folder / "run.json")
    names, numbers = run.get("class_names") or [], run.get("classes") or []
    return [names[int(k)] if names else f"{k:g}" for k in numbers]


def load_strictly(model: nn.Module, weights: dict[str, Tensor], source) -> None:
    """Copy `weights` into `model`; any tensor missing, extra or of another shape is an error."""
    wanted = model.state_dict()
    problems = [f"missing {key}" for key in wanted if key not in weights]
    problems += [f"not expected {key}" for key in weights if key not in wanted]
    problems += [
        f"{key} is {list(weights[key].shape)}, expected {list(wanted[key].shape)}"
        for key in wanted
        if key in weights and weights[key].shape != wanted[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise BrainLMError(f"{source}: the weights do not fit the configuration: "
                           + "; ".join(problems[:6]) + more)  # fmt: skip
    model.load_state_dict(weights)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Tensors of model.safetensors or pytorch_model.bin; no other object is ever unpickled."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        path = folder / name
        if not path.exists():
            continue
        if reason := describe_absent(path):
            raise BrainLMError(f"{path}: {reason}")
        try:
            path.open("rb").close()  # safetensors calls all that it cannot open absent
            if path.suffix == ".safetensors":
                return load_file(path)
            return torch.load(path, map_location="cpu", weights_only=True)
        except PermissionError as error:
            raise BrainLMError(
                f"{path}: {error.strerror}: ask its owner to make it readable (chmod g+r)"
            ) from None
        except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
            raise BrainLMError(f"{path}: the weights cannot be read ({error}); if they were "
                               "downloaded, the download is not complete: get them again"
                               ) from None  # fmt: skip
        except Exception as error:  # UnpicklingError: an object that is not a tensor
            raise BrainLMError(f"{path}: the weights are refused ({error})") from None
    parts = sorted(path.name for path in folder.glob("*.index.json"))
    raise BrainLMError(
        f"{folder}: expected model.safetensors or pytorch_model.bin, found neither"
        + (f" (weights in parts, {parts[0]}, are not read: merge them)" if parts else "")
        + "; if the folder was downloaded, the download is not complete: get it again"
    )


def _locate(path_or_hub_id, subfolder: str | None, hub: dict) -> Path:
    folder, name = Path(path_or_hub_id), os.fspath(path_or_hub_id)
    if unknown := set(hub) - set(HUB_OPTIONS):
        raise BrainLMError(f"{name}: unknown options {', '.join(sorted(unknown))}; known: "
                           f"{', '.join(HUB_OPTIONS)}")  # fmt: skip
    if not folder.is_dir():
        if name.count("/") != 1 or name.startswith((".", "/")):
            raise BrainLMError(f"{name}: no such model folder (nor a hub name: owner/name)")
        folder = _from_hub(name, subfolder, hub)
    inside = sorted(p.parent.name for p in folder.glob("*/config.json"))
    folder = folder / subfolder if subfolder else folder
    if not (folder / "config.json").exists():
        raise BrainLMError(
            f"{folder}: no config.json; "
            + (
                f"subfolder= one of: {', '.join(inside)}"
                if inside
                else "if the folder was downloaded, the download is not complete: get it again"
            )
        )
    return folder


def _from_hub(name: str, subfolder: str | None, hub: dict) -> Path:
    from huggingface_hub import errors, snapshot_download

    prefix = f"{subfolder}/" if subfolder else ""
    wanted = [prefix + file for file in FILES] + ["*/config.json"]  # to name the subfolders
    wanted += ["README.md", f"{prefix}README.md"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, **hub))
    except errors.GatedRepoError:
        reason = ("the hub gives it to accepted accounts only: ask for access on its page, then "
                  "hf auth login")  # fmt: skip
    except errors.RepositoryNotFoundError:
        reason = ("the hub has no such repository, or it is private: check the name, or "
                  "hf auth login")  # fmt: skip
    except errors.RevisionNotFoundError:
        reason = f"the repository has no revision {hub.get('revision')}"
    except errors.LocalEntryNotFoundError:
        reason = ("not in the local cache, and the hub cannot be reached: download it where there "
                  f"is a network (hf download {name})")  # fmt: skip
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0]
    raise BrainLMError(f"{name}: no folder here, and from the hub: {reason}")


def push_to_hub(
    folder, repository: str, *, private: bool = True, token: str | None = None,
    license: str | None = None,
) -> str:  # fmt: skip
    """Upload a model folder written by :meth:`BrainLM.save_pretrained`; gives its address.

    Parameters
    ----------
    license : str, optional
        Of the weights, an identifier of the hub such as ``apache-2.0`` or ``cc-by-nc-4.0``; goes
        into the card. Without it the card says that it is undecided.

    Raises
    ------
    BrainLMError
        Not a whole model folder.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    missing = [f for f in ("config.json", "model.safetensors", "scaling.json", "README.md")
               if not (folder / f).exists()]  # fmt: skip
    if missing:
        raise BrainLMError(f"{folder}: not a model folder, lacks {', '.join(missing)}")
    api = HfApi(token=token)
    api.create_repo(repository, private=private, exist_ok=True)
    upload = [*FILES, CODE_FILE, "metrics.jsonl", "run.json"]
    address = api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=upload)
    card = (folder / "README.md").read_text(encoding="utf-8")
    card = set_license(card, license) if license else card
    api.upload_file(repo_id=repository, path_in_repo="README.md",
                    path_or_fileobj=card.encode())  # fmt: skip
    return str(address)


def read_card(name: str) -> str:
    """The README.md that came with a model folder or ``owner/name[/subfolder]``: its own, or that
    of the repository; empty without one."""
    path, subfolder = split_name(name)
    folder = _locate(path, subfolder, {})
    places = [folder, folder.parent] if subfolder else [folder]
    found = [place / "README.md" for place in places if (place / "README.md").is_file()]
    return found[0].read_text(encoding="utf-8") if found else ""


def split_name(name: str) -> tuple[str, str | None]:
    """A folder as it is; ``owner/name/subfolder`` -> (``owner/name``, ``subfolder``)."""
    if Path(name).exists() or name.count("/") < 2 or name.startswith((".", "/")):
        return name, None
    owner, repository, subfolder = name.split("/", 2)
    return f"{owner}/{repository}", subfolder
