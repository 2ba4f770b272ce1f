"""The rules of ONNX Runtime's own operators, which optimized models carry."""

from onnxcomp.training.torch_graph.microsoft import attention, fused, quantized

FAMILIES = (attention, fused, quantized)
