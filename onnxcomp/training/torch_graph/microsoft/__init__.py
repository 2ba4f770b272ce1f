"""The rules of ONNX Runtime's own operators, which optimized models carry."""

FAMILIES = ()
