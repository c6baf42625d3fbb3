"""Training: windows from shards, pretraining, fine-tuning, checkpoints."""
