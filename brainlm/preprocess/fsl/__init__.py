"""The ``fsl`` engine: FSL's programs through nipype, and their file formats."""
