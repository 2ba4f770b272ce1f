"""The derivatives of operators, by family."""
