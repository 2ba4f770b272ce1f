"""Values on grids and in codebooks: affine, ternary, k-means, product quantization."""
