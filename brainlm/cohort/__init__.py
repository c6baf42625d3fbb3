"""Find recordings, keep them in stable chunks, split by subject, read labels."""
