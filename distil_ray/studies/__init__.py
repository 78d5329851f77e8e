"""Many runs -> one finding: searches and ablations."""
