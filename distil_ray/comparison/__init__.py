"""Runs -> what they led to: figures, cost, guesses, and what may be said of runs on the same batches."""
