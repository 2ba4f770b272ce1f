"""Weights and the linear operators that read them: roles, matrix forms, biases."""
