"""What is read and written: images, sidecars, derivatives and their names."""
