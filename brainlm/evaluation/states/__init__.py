"""What participants are doing or looking at, decoded from short clips of their runs."""
