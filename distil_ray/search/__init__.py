"""A search for settings: runs side by side, each an ordinary one, and what they say about the settings."""
