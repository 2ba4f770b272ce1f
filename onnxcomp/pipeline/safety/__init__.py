"""What the samples license: weights that none of them reaches, patterns that match nothing."""
