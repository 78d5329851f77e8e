"""Batches -> losses: models, students built from teachers, and the triple loss. Plain torch."""
