"""All rules: importing this module has every family register its own."""

from onnxcomp.training.torch_graph import microsoft, rules
from onnxcomp.training.torch_graph.rule import RULES

FAMILIES = (*rules.FAMILIES, *microsoft.FAMILIES)

__all__ = ["FAMILIES", "RULES"]
