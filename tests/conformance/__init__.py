"""ONNX's backend node tests, as models to send through onnxcomp."""
