"""Weights as products of smaller ones in the nodes that read them: where that can be done, and doing it."""
