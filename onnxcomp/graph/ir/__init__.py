"""Graphs opened for editing on graphsurgeon's nodes: read, rewired, written back without a loss."""
