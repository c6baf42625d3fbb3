"""Simulated raw BIDS cohorts whose truth is known: motion, networks, artefacts, age.

Imports only what lies at the bottom of the package, and nilearn for the template.
"""
