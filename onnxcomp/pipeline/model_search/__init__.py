"""Rewrites of the whole model against each other: built, timed, verified."""
