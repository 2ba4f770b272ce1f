"""Nodes that compute with integers: which, on what grids, and how they are written."""
