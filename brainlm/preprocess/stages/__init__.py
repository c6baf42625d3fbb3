"""What runs on a recording of raw images: a file per stage, and what all of them share."""
