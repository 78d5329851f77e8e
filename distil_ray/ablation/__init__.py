"""What each part of the recipe is worth: the same run without it, over seeds, as in the DistilBERT paper's table 4."""
