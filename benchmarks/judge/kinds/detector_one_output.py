"""A detector in the manner of YOLO: decoded boxes in pixels and class scores in one output (N, 4 + classes, P).

Two scales (strides 4 and 8) joined as in a feature pyramid; boxes are centre, width and height.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.judge.catalogue import Array, Run
from benchmarks.judge.kinds import _boxes

KIND = "detector"
EXPORTER = "torch-dynamo"
STRIDES = (4, 8)
LARGE = 11  # pixels: wider boxes belong to the coarse scale


def network() -> Any:
    """The torch module, untrained."""
    import torch
    from torch import nn

    def conv(inner: int, outer: int, stride: int = 1, kernel: int = 3) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inner, outer, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outer), nn.SiLU()
        )

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(conv(1, 16, 2), conv(16, 24, 2), conv(24, 24))
            self.down = nn.Sequential(conv(24, 40, 2), conv(40, 40))
            self.join = conv(64, 32)
            self.heads = nn.ModuleList([nn.Conv2d(32, 4 + _boxes.CLASSES, 1), nn.Conv2d(40, 4 + _boxes.CLASSES, 1)])
            for head in self.heads:
                nn.init.constant_(head.bias[4:], -3.0)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            fine = self.stem(image)
            coarse = self.down(fine)
            fine = self.join(torch.cat([fine, nn.functional.interpolate(coarse, scale_factor=2.0)], 1))
            scales = []
            for head, feature, stride in zip(self.heads, (fine, coarse), STRIDES, strict=True):
                raw = head(feature).flatten(2)
                side = _boxes.SIZE // stride
                down, across = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
                corner = torch.stack([across, down]).flatten(1).float()
                centre = (corner + raw[:, :2].sigmoid() * 2 - 0.5) * stride
                extent = raw[:, 2:4].exp() * stride
                scales.append(torch.cat([centre, extent, raw[:, 4:].sigmoid()], 1))
            return torch.cat(scales, 2)

    return Detector()


def targets(objects: Array) -> tuple[Array, Array]:
    """Wanted boxes (N, 4, P) in pixels and scores (N, classes, P): each object belongs to the cell of its centre."""
    sides = [_boxes.SIZE // stride for stride in STRIDES]
    boxes = np.zeros((len(objects), 4, sum(side**2 for side in sides)), np.float32)
    scores = np.zeros((len(objects), _boxes.CLASSES, boxes.shape[2]), np.float32)
    for index, slot in np.argwhere(objects[..., 0] >= 0):
        kind, x0, y0, x1, y1 = objects[index, slot].astype(int)
        scale = int(max(x1 - x0, y1 - y0) > LARGE)
        x, y, side = (x0 + x1) / 2, (y0 + y1) / 2, sides[scale]
        cell = int(y // STRIDES[scale]) * side + int(x // STRIDES[scale]) + scale * sides[0] ** 2
        boxes[index, :, cell] = x, y, x1 - x0, y1 - y0
        scores[index, kind, cell] = 1
    return boxes, scores


def build(folder: Path, seed: int) -> None:
    """Train and write the model and its data."""
    import torch
    from torch.nn.functional import binary_cross_entropy

    from benchmarks.judge import training

    training.start(seed)
    images, objects = _boxes.pictures(seed, 8000)
    inputs = torch.tensor(images[:, None] / np.float32(255))
    boxes, scores = (torch.tensor(each) for each in targets(objects))
    net = network()

    def loss(image: Any, box: Any, sure: Any) -> Any:
        got = net(image)
        held = sure.amax(1, keepdim=True)
        error = (got[:, :4] - box).abs() / 4 * held
        return (error.sum() + binary_cross_entropy(got[:, 4:], sure, reduction="sum")) / held.sum()

    training.fit(net, loss, (inputs, boxes, scores), epochs=7, rate=4e-3)
    batch = {0: torch.export.Dim("batch")}
    training.export_dynamo(
        net, (inputs[:2],), folder / "model.onnx", inputs=["images"], outputs=["output0"], shapes=(batch,)
    )
    images, objects = _boxes.pictures(seed + 1, 800)
    calib = _boxes.pictures(seed + 2, 200)[0][:, None] / np.float32(255)
    np.savez_compressed(folder / "calib.npz", images=calib)
    np.savez_compressed(folder / "test.npz", images=images, objects=objects)


def units(run: Run, test: dict[str, Array]) -> Array:
    """One row a picture: its best detections and what is there."""
    (found,) = run({"images": test["images"][:, None] / np.float32(255)}).values()
    found = found.transpose(0, 2, 1)
    half = found[..., 2:4] / 2
    corners = np.concatenate([found[..., :2] - half, found[..., :2] + half], -1)
    return _boxes.picture_units(corners, found[..., 4:], test["objects"])


def score(units: Array) -> float:
    """Mean AP at overlap 0.5, x 100."""
    return _boxes.mean_ap(units)
