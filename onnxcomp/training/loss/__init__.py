"""Losses as nodes of the model that is trained."""
