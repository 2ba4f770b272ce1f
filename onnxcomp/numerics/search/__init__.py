"""Combinatorial optimization: rate allocation, minimum cut."""
