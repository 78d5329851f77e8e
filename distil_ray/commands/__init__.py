"""The commands, a module each with `make_parser` and `main`, and what `distil-ray --help` says of them."""

COMMANDS = {
    "quickstart": "distil a small model and compare it, in minutes and without a download",
    "train": "distil a student, from raw text to a Hugging Face folder",
    "tune": "search for temperature, loss weights and other settings",
    "evaluate": "compare students with their teacher: size, speed, scores",
    "ablate": "train without each part of the recipe, over seeds, and compare",
    "report": "put the results of runs, or of a search, on one page",
    "export": "write a run's student as it was at a checkpoint",
    "push": "publish a run's student on the Hugging Face Hub",
    "doctor": "check a cluster with a run's configuration, before money is spent",
    "vocabulary": "make a WordPiece vocabulary from text",
    "schema": "print the JSON Schema of configuration files, for editors",
    "drain": "on a node: tell Ray when its end is announced",
}
"""A line each, by name, in the order of the list; the command `name` is in the module of that name."""
