"""Tables, charts and findings -> pages and files. Knows nothing of models, runs or Ray."""
