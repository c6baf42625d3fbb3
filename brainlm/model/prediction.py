"""From what a head gives to what a label is: probabilities of classes, or a label's units."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .shape import BrainLMConfig


class Prediction(NamedTuple):
    """What a fine-tuned model predicts of windows.

    Attributes
    ----------
    values : Tensor [B, C] float64
        Of a classifier the probability of each class, of a regression one value in the label's
        units.
    names : tuple of str
        C names: the classes, or the label.
    """

    values: Tensor
    names: tuple[str, ...]

    def mean(self) -> Tensor:
        """[C]: of a recording, whose prediction is the mean of its windows'."""
        return self.values.mean(0)

    @property
    def best(self) -> list[str]:
        """Of a classifier the most probable class of each window."""
        return [self.names[k] for k in self.values.argmax(1).tolist()]


def decode_outputs(config: BrainLMConfig, outputs: Tensor) -> Prediction:
    """Predictions from the outputs [B, K] of the head of a model of this shape."""
    raw = outputs.double()
    if not config.classes:
        label = raw * config.label_std + config.label_mean
        return Prediction(
            label.expm1() if config.label_log else label, (config.target or "label",)
        )
    if raw.shape[1] == 1:  # log odds of the second of two
        second = raw.sigmoid()
        return Prediction(torch.cat([1 - second, second], 1), config.classes)
    return Prediction(raw.softmax(1), config.classes)
