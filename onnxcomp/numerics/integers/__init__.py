"""Integer arithmetic of kernels: grids of weights and activations, ranges, short floats."""
