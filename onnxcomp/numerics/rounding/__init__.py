"""Rounding by the error at a node's output, which a Gram matrix measures."""
