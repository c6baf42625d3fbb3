"""One interpolation from voxels to parcels; then filter, percent and the common sample period."""
