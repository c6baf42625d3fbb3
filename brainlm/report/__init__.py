"""The pages: facts are read from files, put into blocks, written by templates without logic."""

from .study import build_report

__all__ = ["build_report"]
