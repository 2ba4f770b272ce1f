"""A detector in the manner of SSD: boxes (N, P, 4), corners in 0..1, and scores (N, P, 1 + classes) with background.

Depthwise convolutions; two anchors a cell on strides 4 and 8; softmax in the graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judge.catalogue import Array, Run
from benchmarks.judge.kinds import _boxes

KIND = "detector"
EXPORTER = "torch-torchscript"
ANCHORS = {4: (7.0, 10.0), 8: (11.0, 14.0)}  # stride -> widths in pixels


def anchors() -> Array:
    """Centre, width and height (P, 4) in pixels."""
    rows = []
    for stride, widths in ANCHORS.items():
        for y, x in np.ndindex(_boxes.SIZE // stride, _boxes.SIZE // stride):
            rows += [((x + 0.5) * stride, (y + 0.5) * stride, width, width) for width in widths]
    return np.array(rows, np.float32)


def network() -> Any:
    """The torch module, untrained."""
    import torch
    from torch import nn

    def conv(inner: int, outer: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU6()]

    def separable(inner: int, outer: int, stride: int = 1) -> list[nn.Module]:
        depthwise = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        pointwise = nn.Conv2d(inner, outer, 1, bias=False)
        return [depthwise, nn.BatchNorm2d(inner), nn.ReLU6(), pointwise, nn.BatchNorm2d(outer), nn.ReLU6()]

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fine = nn.Sequential(*conv(1, 16, 2), *conv(16, 32, 2), *separable(32, 64), *separable(64, 64))
            self.coarse = nn.Sequential(*separable(64, 96, 2), *separable(96, 96))
            outer = 2 * (5 + _boxes.CLASSES)
            self.heads = nn.ModuleList([nn.Conv2d(64, outer, 3, padding=1), nn.Conv2d(96, outer, 1)])
            self.register_buffer("anchors", torch.tensor(anchors()))

        def raw(self, image: torch.Tensor) -> torch.Tensor:
            fine = self.fine(image)
            maps = [head(each) for head, each in zip(self.heads, (fine, self.coarse(fine)), strict=True)]
            return torch.cat(
                [each.permute(0, 2, 3, 1).reshape(image.shape[0], -1, 5 + _boxes.CLASSES) for each in maps], 1
            )

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            raw = self.raw(image)
            centre = self.anchors[:, :2] + raw[..., :2] * 0.1 * self.anchors[:, 2:]
            half = self.anchors[:, 2:] * (raw[..., 2:4] * 0.2).exp() / 2
            return torch.cat([centre - half, centre + half], -1) / _boxes.SIZE, raw[..., 4:].softmax(-1)

    return Detector()


def targets(objects: Array) -> tuple[Array, Array]:
    """Offsets (N, P, 4) and classes (N, P) int64, 0 for background: anchors of overlap 0.45, and each object's best."""
    base = anchors()
    corners = np.concatenate([base[:, :2] - base[:, 2:] / 2, base[:, :2] + base[:, 2:] / 2], 1)
    offsets = np.zeros((len(objects), len(base), 4), np.float32)
    classes = np.zeros((len(objects), len(base)), np.int64)
    for index, slot in np.argwhere(objects[..., 0] >= 0):
        kind, *box = objects[index, slot].astype(np.float64)
        x0, y0, x1, y1 = box
        fit_of = _boxes.overlap(np.array(box), corners)
        mine = fit_of >= min(0.45, fit_of.max())
        shift = (np.array([(x0 + x1) / 2, (y0 + y1) / 2]) - base[mine, :2]) / base[mine, 2:] / 0.1
        offsets[index, mine] = np.concatenate([shift, np.log(np.array([x1 - x0, y1 - y0]) / base[mine, 2:]) / 0.2], 1)
        classes[index, mine] = int(kind) + 1
    return offsets, classes


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    import torch
    from torch.nn.functional import cross_entropy, smooth_l1_loss

    from benchmarks.judge import training

    training.start(seed)
    images, objects = _boxes.pictures(seed, 8000)
    inputs = torch.tensor(images[:, None] / np.float32(255))
    offsets, classes = (torch.tensor(each) for each in targets(objects))
    net = network()

    def loss(image: Any, offset: Any, wanted: Any) -> Any:
        raw = net.raw(image)
        held = wanted > 0
        each = cross_entropy(raw[..., 4:].transpose(1, 2), wanted, reduction="none")
        hard = (each * ~held).flatten().topk(3 * int(held.sum())).values.sum()  # three negatives a positive
        boxes = smooth_l1_loss(raw[..., :4][held], offset[held], reduction="sum")
        return ((each * held).sum() + hard + boxes) / held.sum()

    training.fit(net, loss, (inputs, offsets, classes), epochs=7, rate=4e-3)
    axes = {"image": {0: "batch"}, "boxes": {0: "batch"}, "scores": {0: "batch"}}
    training.export_torchscript(
        net, (inputs[:2],), folder / "model.onnx", inputs=["image"], outputs=["boxes", "scores"], axes=axes
    )
    images, objects = _boxes.pictures(seed + 1, 800)
    calib = _boxes.pictures(seed + 2, 200)[0][:, None] / np.float32(255)
    np.savez_compressed(folder / "calib.npz", image=calib)
    np.savez_compressed(folder / "test.npz", images=images, objects=objects)


def units(run: Run, test: dict[str, Array]) -> Array:
    """One row a picture: its best detections and what is there."""
    found = run({"image": test["images"][:, None] / np.float32(255)})
    return _boxes.picture_units(found["boxes"] * _boxes.SIZE, found["scores"][..., 1:], test["objects"])


def score(units: Array) -> float:
    """Mean AP at overlap 0.5, x 100."""
    return _boxes.mean_ap(units)
