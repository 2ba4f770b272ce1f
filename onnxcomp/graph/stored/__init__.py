"""Weights that are stored in fewer bytes than nodes read: known by their decoders, seen as what these make."""
