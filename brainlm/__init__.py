"""BrainLM pipeline: BIDS fMRI recordings in, a trained and evaluated foundation model out."""

from importlib.metadata import PackageNotFoundError, version

from .files import keep_compiled

try:
    __version__ = version("brainlm-pipeline")
except PackageNotFoundError:  # a folder on PYTHONPATH
    __version__ = "0+unknown"

keep_compiled()
