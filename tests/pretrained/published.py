"""Tensor names and shapes of the two published families, at any width, and random values for them.

The values depend on nothing but the names, so that a script and a test can make the same ones.
"""

import zlib
from collections.abc import Iterator

import numpy as np

Shapes = dict[str, tuple[int, ...]]

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
PUBLISHED = {"depth": 50, "width": 64, "fpn": 256, "fc": 1024, "conv": 1024, "classes": 80}
NARROW = {"depth": 50, "width": 4, "fpn": 8, "fc": 12, "conv": 16, "classes": 3}
COUNTER = "num_batches_tracked"


def _norm(name: str, channels: int, *, counter: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (channels,)
    if counter:
        yield f"{name}.{COUNTER}", ()


def _layer(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def resnet_shapes(prefix: str, stem: str, *, depth: int, width: int, counter: bool) -> Shapes:
    shapes: Shapes = {f"{prefix}{stem}conv1.weight": (width, 3, 7, 7)}
    shapes.update(_norm(f"{prefix}{stem}bn1", width, counter=counter))
    channels = width
    for stage, blocks in enumerate(BLOCKS[depth], 1):
        inner = width * 2 ** (stage - 1)
        for block in range(blocks):
            name = f"{prefix}layer{stage}.{block}"
            for index, (out, kernel) in enumerate(((inner, 1), (inner, 3), (4 * inner, 1)), 1):
                source = {1: channels, 2: inner, 3: inner}[index]
                shapes[f"{name}.conv{index}.weight"] = (out, source, kernel, kernel)
                shapes.update(_norm(f"{name}.bn{index}", out, counter=counter))
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * inner, channels, 1, 1)
                shapes.update(_norm(f"{name}.downsample.1", 4 * inner, counter=counter))
            channels = 4 * inner
    return shapes


def authors_shapes(
    *, depth: int, width: int, fpn: int, fc: int, conv: int, classes: int, blocks: int = 2, prefix: str = "module."
) -> Shapes:
    shapes = resnet_shapes("backbone.body.", "stem.", depth=depth, width=width, counter=False)
    for level in (1, 2, 3, 4):
        shapes.update(_layer(f"backbone.fpn.fpn_inner{level}", fpn, width * 2 ** (level + 1), 1, 1))
        shapes.update(_layer(f"backbone.fpn.fpn_layer{level}", fpn, fpn, 3, 3))
    shapes.update(_layer("rpn.head.conv", fpn, fpn, 3, 3))
    shapes.update(_layer("rpn.head.cls_logits", 3, fpn, 1, 1))
    shapes.update(_layer("rpn.head.bbox_pred", 12, fpn, 1, 1))
    head = "roi_heads.box.feature_extractor."
    for name, out, kernel in (("top.0", conv, 1), ("bottom.0", fpn, 3), ("bottom.3", conv, 1)):
        shapes[f"{head}nonlocal_conv.{name}.weight"] = (out, fpn, kernel, kernel)
        branch, index = name.split(".")
        shapes.update(_norm(f"{head}nonlocal_conv.{branch}.{int(index) + 1}", out))
    for block in range(blocks):
        name = f"{head}shared_nonlocal.{block}"
        for part in ("g", "theta", "phi"):
            shapes.update(_layer(f"{name}.{part}", conv // 2, conv, 1, 1))
        shapes.update(_layer(f"{name}.W.0", conv, conv // 2, 1, 1))
        shapes.update(_norm(f"{name}.W.bn", conv))
        inner = conv // 4
        for index, out, source, kernel in ((0, inner, conv, 1), (3, inner, inner, 3), (6, conv, inner, 1)):
            shapes[f"{name}.ffconv.bottleneck.{index}.weight"] = (out, source, kernel, kernel)
            shapes.update(_norm(f"{name}.ffconv.bottleneck.{index + 1}", out))
    shapes.update(_layer(f"{head}fc6", fc, fpn * 49))
    shapes.update(_layer(f"{head}fc7", fc, fc))
    for ending, channels in (("", conv), ("_fc", fc)):
        shapes.update(_layer(f"roi_heads.box.predictor.cls_score{ending}", classes + 1, channels))
        shapes.update(_layer(f"roi_heads.box.predictor.bbox_pred{ending}", 4 * (classes + 1), channels))
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


def mmdetection_shapes(
    *, depth: int, width: int, fpn: int, fc: int, conv: int, classes: int, blocks: int = 4
) -> Shapes:
    shapes = resnet_shapes("backbone.", "", depth=depth, width=width, counter=True)
    for level in range(4):
        shapes.update(_layer(f"neck.lateral_convs.{level}.conv", fpn, width * 2 ** (level + 2), 1, 1))
        shapes.update(_layer(f"neck.fpn_convs.{level}.conv", fpn, fpn, 3, 3))
    shapes.update(_layer("rpn_head.rpn_conv", fpn, fpn, 3, 3))
    shapes.update(_layer("rpn_head.rpn_cls", 3, fpn, 1, 1))
    shapes.update(_layer("rpn_head.rpn_reg", 12, fpn, 1, 1))
    head = "roi_head.bbox_head."
    for name, out, kernel in (("conv1", fpn, 3), ("conv2", conv, 1), ("conv_identity", conv, 1)):
        shapes[f"{head}res_block.{name}.conv.weight"] = (out, fpn, kernel, kernel)
        shapes.update(_norm(f"{head}res_block.{name}.bn", out))
    inner = conv // 4
    for block in range(blocks):
        name = f"{head}conv_branch.{block}"
        for index, out, source, kernel in ((1, inner, conv, 1), (2, inner, inner, 3), (3, conv, inner, 1)):
            shapes[f"{name}.conv{index}.weight"] = (out, source, kernel, kernel)
            shapes.update(_norm(f"{name}.bn{index}", out))
    shapes.update(_layer(f"{head}fc_branch.0", fc, fpn * 49))
    shapes.update(_layer(f"{head}fc_branch.1", fc, fc))
    shapes.update(_layer(f"{head}fc_cls", classes + 1, fc))
    shapes.update(_layer(f"{head}fc_reg", 4 * classes, conv))
    return shapes


def make_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values that keep activations near one: kernels by their inputs, variances from 0.5 to 1.5, small offsets."""
    if name.endswith(COUNTER):
        return np.zeros(shape, np.int64)
    uniform = np.random.default_rng(zlib.crc32(name.removeprefix("module.").encode())).random(shape, np.float32)
    if name.endswith("running_var"):
        return 0.5 + uniform
    if len(shape) == 1:
        return (0.75 if name.endswith("weight") else 0.0) + (uniform - 0.5) / 2
    return (uniform - 0.5) * np.float32(4.0 / np.sqrt(np.prod(shape[1:])))


def make_tensors(shapes: Shapes) -> dict[str, np.ndarray]:
    """Values for a whole checkpoint."""
    return {name: make_tensor(name, shape) for name, shape in shapes.items()}
