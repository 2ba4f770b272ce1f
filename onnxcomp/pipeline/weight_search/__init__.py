"""A pass and a strength for each weight: candidates, allocation, verification."""
