"""An ONNX graph executed in torch, operator by operator, so that autograd differentiates it."""
