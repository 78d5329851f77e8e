"""Text -> batches: sources, schedule, packing, masking, and the Ray Data pipeline over them."""
