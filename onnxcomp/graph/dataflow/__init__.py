"""Where tensors come from and where they go: sources, selections, time axes, operators of outputs."""
