"""Losses -> a trained student: the launcher, the training loop, the optimizer and checkpoints."""
