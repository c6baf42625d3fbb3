"""What a dataset's ``dataset_description.json`` states about how it was made."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from ...errors import BrainLMError
from ...files import describe_absent, read_json

FILE = "dataset_description.json"


class _Maker(BaseModel):
    name: str = Field("", alias="Name")


class Description(BaseModel):
    """What is read of the file."""

    kind: str = Field("raw", alias="DatasetType")
    generated_by: list[_Maker] = Field([], alias="GeneratedBy")
    pipeline: _Maker = Field(_Maker(Name=""), alias="PipelineDescription")  # before BIDS 1.4

    @property
    def derivative(self) -> bool:
        return self.kind.lower() == "derivative" or bool(self.pipeline.name)

    @property
    def makers(self) -> str:
        """The programs' names, as they are written."""
        return ", ".join(m.name for m in (*self.generated_by, self.pipeline) if m.name)

    @property
    def layout(self) -> str | None:
        """The layout of the program's derivatives, if it is known."""
        makers = self.makers.lower()
        return "xcpd" if "xcp" in makers else "fmriprep" if "prep" in makers else None


def read_description(folder: Path) -> Description | None:
    """None where there is no such file, or one that states nothing that can be read.

    Raises
    ------
    BrainLMError
        A link without content.
    """
    path = folder / FILE
    if not os.path.lexists(path):
        return None
    if absent := describe_absent(path):
        raise BrainLMError(f"{path}: {absent}")
    try:
        return Description.model_validate(read_json(path))
    except (BrainLMError, ValidationError):  # nothing else is read of it
        return None
