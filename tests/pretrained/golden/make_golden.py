"""Write published_families.npz: both published families, narrow, computed in plain PyTorch functions.

    python tests/pretrained/golden/make_golden.py

It is an independent source: no line of dh_keras takes part. Written with PyTorch 2.13 and NumPy 2.4 in float64. The
weights are those of tests/pretrained/published.py, which depend on the tensors' names alone, so only results are
stored. RoIAlign is four nested loops over bins and samples.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import published

OUTPUT = Path(__file__).with_name("published_families.npz")
HEIGHT, WIDTH = 96, 160
STRIDES = (4, 8, 16, 32)
CELLS = 7
# x1 y1 x2 y2 in continuous pixels: inside, tall, wide, partly and wholly outside, smaller than a cell, a large one.
ROIS = np.array(
    [
        [10.3, 20.7, 60.1, 71.9],
        [100.0, 5.0, 112.0, 90.0],
        [3.0, 40.0, 155.0, 52.0],
        [-20.0, -10.0, 30.0, 25.0],
        [170.0, 100.0, 190.0, 120.0],
        [50.2, 50.4, 51.0, 50.9],
        [0.0, 0.0, 160.0, 96.0],
        [-100.0, -150.0, 260.0, 300.0],
    ]
)


class Network:
    """One family's network as functions of a dict of tensors."""

    def __init__(self, family: str):
        self.legacy = family == "authors"
        shapes = {"authors": published.authors_shapes, "mmdetection": published.mmdetection_shapes}[family]
        options = {"prefix": ""} if self.legacy else {}
        tensors = published.make_tensors(shapes(**published.NARROW, **options))
        self.tensors = {
            name: torch.tensor(value, dtype=torch.float64, requires_grad="running" not in name)
            for name, value in tensors.items()
            if value.dtype == np.float32
        }

    def conv(self, x, name, stride=1):
        weight = self.tensors[f"{name}.weight"]
        return functional.conv2d(x, weight, self.tensors.get(f"{name}.bias"), stride, weight.shape[-1] // 2)

    def norm(self, x, name, *, epsilon=1e-5, training=False):
        parts = [self.tensors[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        mean, variance = (part.clone() for part in parts[:2])
        return functional.batch_norm(x, mean, variance, *parts[2:], training=training, eps=epsilon)

    def linear(self, x, name):
        return functional.linear(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def backbone(self, x):
        prefix, stem = ("backbone.body.", "stem.") if self.legacy else ("backbone.", "")
        epsilon = 0.0 if self.legacy else 1e-5

        def block(x, name, stride):
            strides = (stride, 1, 1) if self.legacy else (1, stride, 1)
            y = x
            for index, own in enumerate(strides, 1):
                y = self.norm(self.conv(y, f"{name}.conv{index}", own), f"{name}.bn{index}", epsilon=epsilon)
                y = y.relu() if index < 3 else y
            if f"{name}.downsample.0.weight" in self.tensors:
                x = self.norm(self.conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1", epsilon=epsilon)
            return (x + y).relu()

        x = self.norm(self.conv(x, f"{prefix}{stem}conv1", 2), f"{prefix}{stem}bn1", epsilon=epsilon).relu()
        x = functional.max_pool2d(x, 3, 2, 1)
        stages = []
        for stage, blocks in enumerate((3, 4, 6, 3), 1):
            for index in range(blocks):
                x = block(x, f"{prefix}layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1)
            stages.append(x)
        return stages

    def pyramid(self, stages):
        def names(level):
            if self.legacy:
                return f"backbone.fpn.fpn_inner{level + 1}", f"backbone.fpn.fpn_layer{level + 1}"
            return f"neck.lateral_convs.{level}.conv", f"neck.fpn_convs.{level}.conv"

        merged = [self.conv(stage, names(level)[0]) for level, stage in enumerate(stages)]
        for level in (2, 1, 0):
            merged[level] = merged[level] + functional.interpolate(merged[level + 1], scale_factor=2, mode="nearest")
        levels = [self.conv(x, names(level)[1]) for level, x in enumerate(merged)]
        return [*levels, levels[3][:, :, ::2, ::2]]

    def rpn(self, levels):
        hidden, logits, deltas = (
            ("rpn.head.conv", "rpn.head.cls_logits", "rpn.head.bbox_pred")
            if self.legacy
            else ("rpn_head.rpn_conv", "rpn_head.rpn_cls", "rpn_head.rpn_reg")
        )
        outputs = []
        for level in levels:
            x = self.conv(level, hidden).relu()
            outputs.append((self.conv(x, logits), self.conv(x, deltas)))
        return outputs

    def roi_align(self, levels, scale):
        pooled = [roi_align(levels, roi, scale, self.legacy) for roi in ROIS]
        return torch.stack(pooled)

    def conv_head(self, x, *, training):
        def conv_norm(x, conv, norm, *, relu=True):
            y = self.norm(self.conv(x, conv), norm, training=training)
            return y.relu() if relu else y

        if self.legacy:
            head = "roi_heads.box.feature_extractor."
            up = f"{head}nonlocal_conv."
            y = conv_norm(x, f"{up}bottom.0", f"{up}bottom.1")
            y = conv_norm(y, f"{up}bottom.3", f"{up}bottom.4", relu=False)
            x = (conv_norm(x, f"{up}top.0", f"{up}top.1", relu=False) + y).relu()
            for block in range(2):
                name = f"{head}shared_nonlocal.{block}"
                attended = conv_norm(self.attend(x, name), f"{name}.W.0", f"{name}.W.bn", relu=False)
                x = (attended + x).relu()
                y = x
                for index in (0, 3, 6):
                    inner = f"{name}.ffconv.bottleneck."
                    y = conv_norm(y, f"{inner}{index}", f"{inner}{index + 1}", relu=index < 6)
                x = (x + y).relu()
        else:
            up = "roi_head.bbox_head.res_block."
            y = conv_norm(x, f"{up}conv1.conv", f"{up}conv1.bn")
            y = conv_norm(y, f"{up}conv2.conv", f"{up}conv2.bn", relu=False)
            x = (conv_norm(x, f"{up}conv_identity.conv", f"{up}conv_identity.bn", relu=False) + y).relu()
            for block in range(4):
                name = f"roi_head.bbox_head.conv_branch.{block}."
                y = x
                for index in (1, 2, 3):
                    y = conv_norm(y, f"{name}conv{index}", f"{name}bn{index}", relu=index < 3)
                x = (x + y).relu()
        return x.mean(dim=(2, 3))

    def attend(self, x, name):
        batch, _, height, width = x.shape
        theta, phi, g = (
            self.conv(x, f"{name}.{part}").reshape(batch, 4, -1, height * width) for part in ("theta", "phi", "g")
        )
        affinity = torch.einsum("bgcp,bgcq->bgpq", theta, phi) / (height * width)
        return torch.einsum("bgpq,bgcq->bgcp", affinity, g).reshape(batch, -1, height, width)

    def heads(self, fc_features, conv_features, *, training):
        """Logits with the background last, and deltas [R, K, 4] as (dx, dy, dw, dh)."""
        first, second = ("fc6", "fc7") if self.legacy else ("fc_branch.0", "fc_branch.1")
        head = "roi_heads.box.feature_extractor." if self.legacy else "roi_head.bbox_head."
        fc = self.linear(fc_features.flatten(1), f"{head}{first}").relu()
        fc = self.linear(fc, f"{head}{second}").relu()
        conv = self.conv_head(conv_features, training=training)
        if not self.legacy:
            deltas = self.linear(conv, f"{head}fc_reg").unflatten(1, (-1, 4))
            return {"fc_class_logits": self.linear(fc, f"{head}fc_cls"), "conv_box_deltas": deltas}
        predictor, outputs = "roi_heads.box.predictor.", {}
        for kind, vectors, ending in (("fc", fc, "_fc"), ("conv", conv, "")):
            logits = self.linear(vectors, f"{predictor}cls_score{ending}")
            outputs[f"{kind}_class_logits"] = torch.cat([logits[:, 1:], logits[:, :1]], dim=1)
            outputs[f"{kind}_box_deltas"] = self.linear(vectors, f"{predictor}bbox_pred{ending}").unflatten(1, (-1, 4))[
                :, 1:
            ]
        return outputs


def roi_align(levels, roi, scale, legacy):
    """Pool one RoI, x1 y1 x2 y2 in continuous pixels, to [C, 7, 7]."""
    x1, y1, x2, y2 = roi
    size = math.sqrt((x2 - x1) * (y2 - y1))
    level = min(max(math.floor(4 + math.log2(size / 224 + 1e-6)), 2), 5) - 2
    features, stride = levels[level][0], STRIDES[level]
    centre_x, centre_y = (x1 + x2) / 2, (y1 + y2) / 2
    half_x, half_y = (x2 - x1) / 2 * scale, (y2 - y1) / 2 * scale
    starts = (centre_y - half_y, centre_x - half_x)
    ends = (centre_y + half_y, centre_x + half_x)
    if legacy:
        starts = [start / stride for start in starts]
        lengths = [max((end - 1) / stride - start, 1.0) for start, end in zip(starts, ends, strict=True)]
    else:
        lengths = [(end - start) / stride for start, end in zip(starts, ends, strict=True)]
        starts = [start / stride - 0.5 for start in starts]
    samples = [2 if legacy else math.ceil(length / CELLS) for length in lengths]
    rows = []
    for row in range(CELLS):
        columns = []
        for column in range(CELLS):
            total = torch.zeros(features.shape[0], dtype=torch.float64)
            for i in range(samples[0]):
                for j in range(samples[1]):
                    y = starts[0] + (row + (i + 0.5) / samples[0]) * lengths[0] / CELLS
                    x = starts[1] + (column + (j + 0.5) / samples[1]) * lengths[1] / CELLS
                    total = total + bilinear(features, y, x)
            columns.append(total / (samples[0] * samples[1]))
        rows.append(torch.stack(columns, dim=-1))
    return torch.stack(rows, dim=-2)


def bilinear(features, y, x):
    _, height, width = features.shape
    if y < -1 or y > height or x < -1 or x > width:
        return torch.zeros(features.shape[0], dtype=torch.float64)
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, along = y - top, x - left
    upper = features[:, top, left] * (1 - along) + features[:, top, right] * along
    lower = features[:, bottom, left] * (1 - along) + features[:, bottom, right] * along
    return upper * (1 - down) + lower * down


def make_image():
    """A smooth pattern without symmetry, [1, 3, H, W]."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = [np.sin(0.11 * x + 0.07 * y), np.cos(0.05 * x - 0.13 * y), np.sin(0.003 * x * y)]
    return torch.tensor(np.stack(image)[None])


def results(family):
    network = Network(family)
    stages = network.backbone(make_image())
    levels = network.pyramid(stages)
    found = {f"C{index}": stage for index, stage in enumerate(stages, 2)}
    found |= {f"P{index}": level for index, level in enumerate(levels, 2)}
    logits, deltas = zip(*network.rpn(levels), strict=True)
    found |= {f"objectness_P{index}": level for index, level in enumerate(logits, 2)}
    found |= {f"anchor_deltas_P{index}": level for index, level in enumerate(deltas, 2)}
    found = {name: value.permute(0, 2, 3, 1)[0] for name, value in found.items()}
    fc_features, conv_features = network.roi_align(levels, 1.0), network.roi_align(levels, 1.3)
    found |= {"roi_fc": fc_features.permute(0, 2, 3, 1), "roi_conv": conv_features.permute(0, 2, 3, 1)}
    found |= network.heads(fc_features, conv_features, training=False)
    trained = network.heads(fc_features, conv_features, training=True)
    # A scalar that depends on every output differently, for gradients through the heads, RoIAlign and the pyramid.
    total = sum((value * pattern(value.shape)).sum() for value in trained.values())
    total = total + sum((value * pattern(value.shape)).sum() for value in (*logits, *deltas))
    total.backward()
    norms = {name: float(tensor.grad.norm()) for name, tensor in network.tensors.items() if tensor.grad is not None}
    found |= {f"trained_{name}": value for name, value in trained.items()}
    arrays = {f"{family}/{name}": slim(value.detach().numpy()) for name, value in found.items()}
    arrays[f"{family}/gradient_names"] = np.array(list(norms))
    arrays[f"{family}/gradient_norms"] = np.array(list(norms.values()), np.float32)
    return arrays


def pattern(shape):
    count = math.prod(shape)
    return torch.cos(torch.arange(count, dtype=torch.float64) * 0.37).reshape(shape)


def slim(array):
    """Every second row and column of a large map is enough to find a mistake."""
    array = array[::3, ::3] if array.size > 4000 else array
    return array.astype(np.float32)


if __name__ == "__main__":
    np.savez_compressed(OUTPUT, **results("authors"), **results("mmdetection"))
    print(f"{OUTPUT}: {OUTPUT.stat().st_size:,} bytes")
