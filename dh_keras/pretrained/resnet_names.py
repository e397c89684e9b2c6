"""ResNet in the names of torchvision, which both published families use inside their own prefixes."""

import re
from collections.abc import Mapping

import numpy as np

from dh_keras.errors import DataError
from dh_keras.modeling.constants import BATCH_NORM_EPSILON
from dh_keras.modeling.layers.resnet import BLOCKS_PER_STAGE, STAGES
from dh_keras.pretrained.tensors import Rule, conv_norm_rules, get_tensor


def resnet_rules(
    depth: int, *, prefix: str, stem_prefix: str = "", target: str = "backbone/", epsilon: float = BATCH_NORM_EPSILON
) -> list[Rule]:
    """Rules for every variable of a `ResNet`.

    Args:
        depth: 18, 50 or 101.
        prefix: in front of "layer1.0.conv1.weight".
        stem_prefix: between prefix and "conv1.weight" of the stem.
        target: in front of our paths.
        epsilon: of the file's batch norms.
    """
    stem = f"{prefix}{stem_prefix}"
    rules = conv_norm_rules(f"{target}stem", f"{stem}conv1", f"{stem}bn1", epsilon=epsilon)
    for stage, blocks in enumerate(BLOCKS_PER_STAGE[depth]):
        for block in range(blocks):
            theirs = f"{prefix}layer{stage + 1}.{block}"
            ours = f"{target}{STAGES[stage].lower()}_block{block}"
            for conv in range(1, 3 if depth == 18 else 4):
                rules += conv_norm_rules(
                    f"{ours}/conv{conv}", f"{theirs}.conv{conv}", f"{theirs}.bn{conv}", epsilon=epsilon
                )
            if block == 0 and (depth > 18 or stage > 0):
                shortcut = f"{theirs}.downsample"
                rules += conv_norm_rules(f"{ours}/shortcut", f"{shortcut}.0", f"{shortcut}.1", epsilon=epsilon)
    return rules


def infer_depth(tensors: Mapping[str, np.ndarray], prefix: str, source: str) -> int:
    """Depth from the number of blocks in each stage.

    Raises:
        DataError: when they are those of no depth that exists here.
    """
    blocks = [count_blocks(tensors, f"{prefix}layer{stage}.") for stage in (1, 2, 3, 4)]
    for depth, expected in BLOCKS_PER_STAGE.items():
        if tuple(blocks) == expected:
            if depth > 18:
                get_tensor(tensors, f"{prefix}layer1.0.conv3.weight", source)
            return depth
    known = ", ".join(f"{depth} ({'-'.join(map(str, blocks))})" for depth, blocks in BLOCKS_PER_STAGE.items())
    raise DataError(f"{source}: has {'-'.join(map(str, blocks))} residual blocks; known depths are {known}")


def count_blocks(tensors: Mapping[str, np.ndarray], prefix: str) -> int:
    """Number of different integers that follow the prefix in the names."""
    numbered = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({match[1] for match in map(numbered.match, tensors) if match})
