"""A finished model on recordings it has not seen: embeddings and predictions from scans.

:mod:`.scans` preprocesses what a user points at, :mod:`.vectors` runs the model, and
:mod:`.session` puts both together for ``brainlm embed`` and ``brainlm predict``.
"""
