"""Pruning weights by what their nodes' outputs miss."""
