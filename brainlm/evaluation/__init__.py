"""What a model is worth: tasks, honest baselines next to it, intervals over subjects.

A task is declared in a YAML file (:mod:`brainlm.evaluation.tasks`). Every result is a tidy Parquet
table with the columns of :data:`brainlm.evaluation.rows.COLUMNS`; the report reads nothing else.
"""
