"""Columns of the participants tables: the model and every baseline on the same participants."""
