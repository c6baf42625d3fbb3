"""What pages say about a step or a task: plain data that stands next to the code it describes.

A room of preprocessing has ``<room>_text.py`` with its sentence of the methods paragraph and the
captions of its figures; a task of the evaluation has ``<task>_text.py``. :mod:`brainlm.report`
lays them out. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sentence:
    """Part of a methods paragraph.

    Attributes
    ----------
    text : str
        Empty if the step was not done.
    cites : tuple of str
        Full references of the works that the text names.
    """

    text: str = ""
    cites: tuple[str, ...] = ()


@dataclass(frozen=True)
class PageText:
    """Words of a section of a page.

    Attributes
    ----------
    title : str
    captions : mapping
        Figure or table -> caption; ``{names}`` in braces are filled in where it is drawn.
    command : str
        What makes the section's files.
    missing : str
        What stands there if there is nothing to show.
    """

    title: str
    captions: Mapping[str, str]
    command: str = ""
    missing: str = ""

    def caption(self, name: str, /, **facts: object) -> str:
        """One caption with its facts filled in."""
        return self.captions[name].format(**facts)


@dataclass(frozen=True)
class TaskText(PageText):
    """Words about a kind of task, and what its results are compared by.

    Attributes
    ----------
    metric : str
        Headline metric, of which more is better; empty if methods are not compared.
    model : str
        The method under test, as its rows name it.
    subject : str
        Start of a sentence about it: ``the fine-tuned model is``.
    where : str
        What a caution is about, before the colon.
    names : mapping
        Method -> plain words, where its name does not explain itself.
    negligible : float, optional
        Below this value of `metric` the model explains almost nothing.
    """

    metric: str = ""
    model: str = ""
    subject: str = ""
    where: str = "{name}, {cohort}"
    names: Mapping[str, str] = field(default_factory=dict)
    negligible: float | None = None
