"""Round one weight to a grid, a codebook or given levels, by what its nodes' outputs lose."""
