"""Losses -> a trained student: the launcher, the loop, the learner, checkpoints and the export."""
