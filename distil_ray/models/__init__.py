"""Models: loading them whole or as outlines, teacher -> student, FLOPs. Plain torch and transformers."""
