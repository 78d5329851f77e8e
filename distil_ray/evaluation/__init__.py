"""Students -> evidence: what they cost, what they guess, and how that compares."""
