"""Matrix products."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from onnxcomp.training.torch_graph.rule import Call, Tensor, rule


@rule("MatMul")
def matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@rule("Gemm")
def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    return general_product(call, a, b, c)


def general_product(call: Call, a: Tensor, b: Tensor, c: Tensor | None) -> Tensor:
    """alpha a b + beta c, with a and b transposed if the node says so."""
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    a = a.t() if call.get("transA", 0) else a
    if alpha == beta == 1 and (c is None or (c.dim() == 1 and c.numel() == b.shape[not call.get("transB", 0)])):
        return F.linear(a, b if call.get("transB", 0) else b.t(), c)
    b = b.t() if call.get("transB", 0) else b
    if not a.dtype.is_floating_point:
        product = int(alpha) * (a @ b)
        return product if c is None else product + int(beta) * c
    return alpha * (a @ b) if c is None else torch.addmm(c, a, b, alpha=alpha, beta=beta)


@rule("Einsum")
def einsum(call: Call, *inputs: Tensor) -> Tensor:
    return torch.einsum(call.get("equation").replace(" ", ""), *inputs)


@rule("Det")
def determinant(call: Call, x: Tensor) -> Tensor:
    return torch.det(x)
