"""Models in and out: our folders, Hugging Face repositories, and the published layouts."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import BrainLMError
from ..files import atomic_path, read_json, write_json, write_text
from ..shards.scaling import Scaling
from .published import convert
from .shape import BrainLMConfig

FORMAT = 1
FILES = ("config.json", "model.safetensors", "pytorch_model.bin", "scaling.json",
         "gaussian.safetensors")  # fmt: skip


class Shared(nn.Module):
    """What a model needs to go to a folder or the hub and to come from there."""

    config: BrainLMConfig
    scaling: Scaling | None

    def save_pretrained(self, folder, scaling: Scaling, card: str) -> None:
        """Write a self-contained model folder; each file appears whole, config.json last.

        config.json, model.safetensors (coordinates included), scaling.json, README.md.
        """
        folder = Path(folder)
        if scaling.num_parcels != self.config.num_parcels:
            raise BrainLMError(f"{folder}: the model has {self.config.num_parcels} parcels, the "
                               f"scaling {scaling.num_parcels}")  # fmt: skip
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        with atomic_path(folder / "model.safetensors") as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
        scaling.save(folder / "scaling.json")
        write_text(folder / "README.md", card)
        facts = {"architectures": ["BrainLM"], "model_type": "brainlm", "format": FORMAT}
        write_json(folder / "config.json", facts | dataclasses.asdict(self.config))

    @classmethod
    def from_pretrained(cls, path_or_hub_id, subfolder: str | None = None, *, coordinates=None,
                        scaling: Scaling | None = None, revision: str | None = None,
                        cache_dir=None) -> Self:  # fmt: skip
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

        Raises
        ------
        BrainLMError
            Nothing there; a layout that is not known; any tensor missing, extra or of another
            shape.
        """
        folder = _locate(path_or_hub_id, subfolder, revision, cache_dir)
        values, weights = read_json(folder / "config.json"), read_weights(folder)
        if values.get("model_type") == "brainlm" and "BrainLM" in values.get("architectures", ()):
            config, coordinates = _ours(folder, values, weights)
        else:
            config, weights = convert(folder, values, weights, coordinates)
            coordinates = weights["coordinates"]
        model = cls(config, coordinates)
        load_strictly(model, weights, folder)
        if (folder / "scaling.json").exists():
            scaling = Scaling.load(folder / "scaling.json")
        model.scaling = scaling
        return model.eval()


def _ours(folder: Path, values: dict, weights: dict) -> tuple[BrainLMConfig, Tensor | None]:
    """Shape and coordinates of a folder of our own."""
    if values.get("format") != FORMAT:
        raise BrainLMError(f"{folder}: model format {values.get('format')}, this version reads "
                           f"{FORMAT}; update brainlm-pipeline")  # fmt: skip
    names = {field.name for field in dataclasses.fields(BrainLMConfig)}
    unknown = set(values) - names - {"architectures", "model_type", "format"}
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
    try:
        if (folder / "model.safetensors").exists():
            return load_file(folder / "model.safetensors")
        path = folder / "pytorch_model.bin"
        if path.exists():
            return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        raise BrainLMError(f"{folder}: the weights cannot be read ({error})") from None
    except Exception as error:  # UnpicklingError: an object that is not a tensor
        raise BrainLMError(f"{folder}: the weights are refused ({error})") from None
    raise BrainLMError(f"{folder}: expected model.safetensors or pytorch_model.bin, found neither")


def _locate(path_or_hub_id, subfolder, revision, cache_dir) -> Path:
    folder = Path(path_or_hub_id)
    if not folder.is_dir():
        name = os.fspath(path_or_hub_id)
        if name.count("/") != 1 or name.startswith((".", "/")):
            raise BrainLMError(f"{name}: no such model folder (nor a hub name: owner/name)")
        folder = _from_hub(name, subfolder, revision, cache_dir)
    folder = folder / subfolder if subfolder else folder
    if not (folder / "config.json").exists():
        inside = sorted(p.parent.name for p in folder.glob("*/config.json"))
        raise BrainLMError(
            f"{folder}: no config.json"
            + (f"; subfolder= one of: {', '.join(inside)}" if inside else "")
        )
    return folder


def _from_hub(name: str, subfolder: str | None, revision: str | None, cache_dir) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    prefix = f"{subfolder}/" if subfolder else ""
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                cache_dir=cache_dir,
                allow_patterns=[prefix + file for file in FILES],
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise BrainLMError(f"{name}: neither a folder here nor reachable on the hub ({reason})"
                           ) from None  # fmt: skip


def push_to_hub(folder, repository: str, *, private: bool = True, token: str | None = None) -> str:
    """Upload a model folder written by :func:`save_pretrained`; gives its address."""
    from huggingface_hub import HfApi

    folder = Path(folder)
    missing = [f for f in ("config.json", "model.safetensors", "scaling.json", "README.md")
               if not (folder / f).exists()]  # fmt: skip
    if missing:
        raise BrainLMError(f"{folder}: not a model folder, lacks {', '.join(missing)}")
    api = HfApi(token=token)
    api.create_repo(repository, private=private, exist_ok=True)
    upload = [*FILES, "README.md", "metrics.jsonl", "run.json"]
    return str(api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=upload))
