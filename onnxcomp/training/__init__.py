"""Gradients over ONNX models, and training by them: the numbers in the weights move, the model's form stays."""
