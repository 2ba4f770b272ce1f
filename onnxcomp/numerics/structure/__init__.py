"""Low-rank factors and sparsity."""
