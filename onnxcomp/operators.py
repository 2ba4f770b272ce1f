"""Domains and kinds of operators that several modules ask for, each once; light, so that anything may import it."""

from __future__ import annotations

# The default domain and its alias; graphsurgeon reads "" as None.
ONNX_DOMAINS = frozenset({None, "", "ai.onnx"})
MACHINE_LEARNING = "ai.onnx.ml"  # trees, scalers, encoders: what sklearn pipelines are made of
MICROSOFT = "com.microsoft"  # what ONNX Runtime brings with it

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
MATRIX_PRODUCTS = frozenset({"Gemm", "MatMul"})
LINEAR = CONVOLUTIONS | MATRIX_PRODUCTS
RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
RESHAPING = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})  # elements and their order stay
