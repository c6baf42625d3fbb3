"""Simulated raw BIDS cohorts whose truth is known: motion, networks, artefacts, age.

Imports only what lies at the bottom of the package, and nilearn for the template.
"""

from .damage import DAMAGE_KINDS, damage_file
from .dataset import simulate_cohort
from .truth import Truth, load_truth
from .unscanned import simulate_series

__all__ = ["DAMAGE_KINDS", "Truth", "damage_file", "load_truth", "simulate_cohort",
           "simulate_series"]  # fmt: skip
