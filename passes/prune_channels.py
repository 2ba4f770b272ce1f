"""Channels go out of a model, with all that makes and reads them.

    y = W2 f(W1 x + b)    becomes    y = V f(W1[k] x + b[k]) + c,  k: the channels that stay

V and c are solved so that y stays nearest to what it was on calibration data. MACs, bytes and memory shrink, and with
them latency, on any target.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxcomp.contract.cutting_pass import CuttingPass
from onnxcomp.graph.channels.dependencies import DependencyGroup


@dataclass(frozen=True, kw_only=True)
class PruneChannels(CuttingPass):
    """Cut channels of convolutions and hidden units of matrix products and recurrent nodes.

    What is cut together is found by dependency groups: residual sums, joins, depthwise kernels, gates, shapes. Which
    channels go, and how many of each group, is chosen where the model's outputs suffer least; what reads them is then
    solved anew by least squares, node after node. ``macs`` or ``size``, where given, takes the place of ``ratio``.
    Heads of an attention are for ``prune-heads``. Deviations from the papers: channels go by backward elimination with
    the others making up for each, instead of LASSO; no fine-tuning here.
    """

    paper = "https://arxiv.org/abs/1707.06168"

    def is_own(self, group: DependencyGroup) -> bool:
        return group.kind != "heads"
