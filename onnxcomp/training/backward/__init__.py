"""The engine that needs nothing but ONNX Runtime: the derivative of a graph is a graph."""
