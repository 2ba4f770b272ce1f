"""Samples: where they come from, how they are cut, and which part verifies."""
