"""Why is it slow, and what mends it: the machine, the installed ONNX Runtime, and a model on both."""
