"""What a model is worth: tasks, honest baselines beside it, intervals over subjects.

Every result is a tidy Parquet table with the columns of :data:`brainlm.evaluation.tables.COLUMNS`;
the report reads nothing else.
"""

from .reconstruction import evaluate_reconstruction
from .targets import evaluate_target

__all__ = ["evaluate_reconstruction", "evaluate_target"]
