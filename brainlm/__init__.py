"""BrainLM pipeline: BIDS fMRI recordings in, a trained and evaluated foundation model out."""

__version__ = "0.1.0"
