"""Distil masked language models on a Ray cluster, the DistilBERT way."""

__version__ = "0.1.0"
