"""Channels of tensors and weights that must be scaled as one."""
