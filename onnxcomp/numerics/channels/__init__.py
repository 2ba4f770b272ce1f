"""Factors of channels: cross-layer equalization, SmoothQuant."""
