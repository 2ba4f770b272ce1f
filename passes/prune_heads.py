"""Heads of attentions go: their part of the query, key and value projections, and what reads them.

    y = [h_1 .. h_n] W    becomes    y = [h_k ..] V,  k: the heads that stay
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxcomp.contract.cutting_pass import CuttingPass
from onnxcomp.graph.channels.dependencies import DependencyGroup


@dataclass(frozen=True, kw_only=True)
class PruneHeads(CuttingPass):
    """Cut heads of attentions.

    A head is all that one product side by side with others reads and makes: its queries, keys and values. Which go is
    chosen where the outputs of the projection behind them suffer least, and this is solved anew. Deviation from the
    paper: by what the output projection loses, with the others making up for it, instead of gradients of gates.
    """

    paper = "https://arxiv.org/abs/1905.10650"

    def is_own(self, group: DependencyGroup) -> bool:
        return group.kind == "heads"
