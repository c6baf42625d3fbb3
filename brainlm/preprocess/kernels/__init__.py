"""The compiled kernels of motion, sampling and normalisation."""
