"""Batches -> losses: the triple loss and the distiller. Plain torch."""
