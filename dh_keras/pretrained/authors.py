"""Checkpoints of the paper authors' release: Double-Head-Ext with non-local blocks, legacy pixel geometry.

Their background is the first class, their frozen batch norms have no epsilon, their pixels are BGR with a deviation of
one, and their ResNets stride in the first 1x1 convolution.
"""

from collections.abc import Mapping

import numpy as np

from dh_keras.config.schema import Config, LossWeightsConfig
from dh_keras.errors import DataError
from dh_keras.modeling.constants import LEVEL_STRIDES
from dh_keras.modeling.ops.cell_anchors import cell_anchors
from dh_keras.modeling.variants import VARIANTS
from dh_keras.pretrained.resnet_names import count_blocks, infer_depth, resnet_rules
from dh_keras.pretrained.tensors import (
    ANCHOR_DELTAS,
    BACKGROUND_DELTAS,
    BACKGROUND_FIRST,
    CONV,
    DENSE,
    FIRST_DENSE,
    Rule,
    conv_norm_rules,
    count_outputs,
    layer_rules,
    norm_rules,
)

FAMILY = "the authors' release (Double-Head-Ext)"
BODY = "backbone.body."
HEAD = "roi_heads.box.feature_extractor."
PREDICTOR = "roi_heads.box.predictor."
ANCHORS = "rpn.anchor_generator.cell_anchors."

UNUSED = (r".*\.num_batches_tracked", r"rpn\.anchor_generator\.cell_anchors\.\d")

# The groups of a non-local block leave no trace in its weights; the release uses four.
NON_LOCAL_GROUPS = 4


def recognises(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the names are this family's."""
    return any(name.startswith(f"{HEAD}nonlocal_conv.") for name in tensors)


def infer_config(tensors: Mapping[str, np.ndarray], source: str) -> tuple[Config, int]:
    """The network and its recipe, and K.

    Args:
        tensors: by name.
        source: what to call the file in errors.
    """
    config = Config()
    model = config.model
    model.variant, model.geometry = "double_head_ext", "legacy"
    model.channel_order, model.pixel_mean, model.pixel_std = "bgr", [102.9801, 115.9465, 122.7717], [1.0, 1.0, 1.0]
    model.backbone.depth = infer_depth(tensors, BODY, source)
    model.backbone.width = count_outputs(tensors, f"{BODY}stem.conv1.weight", source)
    model.backbone.stride_in_1x1 = True
    model.fpn.channels = count_outputs(tensors, "backbone.fpn.fpn_inner1.weight", source)
    model.fc_head.channels = count_outputs(tensors, f"{HEAD}fc6.weight", source)
    model.conv_head.channels = count_outputs(tensors, f"{HEAD}nonlocal_conv.top.0.weight", source)
    model.conv_head.blocks = count_blocks(tensors, f"{HEAD}shared_nonlocal.")
    model.conv_head.non_local.groups = NON_LOCAL_GROUPS
    if model.conv_head.blocks:
        theta = f"{HEAD}shared_nonlocal.0.theta.weight"
        model.conv_head.non_local.channels = count_outputs(tensors, theta, source)
    config.train.bias_lr_factor, config.train.bias_l2 = 2.0, 0.0
    model.loss_weights = LossWeightsConfig(**VARIANTS[model.variant].loss_weights)
    _check_anchors(tensors, config, source)
    return config, count_outputs(tensors, f"{PREDICTOR}cls_score.weight", source) - 1


def rules(config: Config) -> list[Rule]:
    """Where every variable of the network comes from."""
    found = resnet_rules(config.model.backbone.depth, prefix=BODY, stem_prefix="stem.", epsilon=0.0)
    for level in range(1, 5):
        found += layer_rules(f"fpn/lateral_c{level + 1}", f"backbone.fpn.fpn_inner{level}", CONV)
        found += layer_rules(f"fpn/output_p{level + 1}", f"backbone.fpn.fpn_layer{level}", CONV)
    found += layer_rules("rpn_head/conv", "rpn.head.conv", CONV)
    found += layer_rules("rpn_head/objectness_predictor", "rpn.head.cls_logits", CONV)
    found += layer_rules("rpn_head/delta_predictor", "rpn.head.bbox_pred", ANCHOR_DELTAS)
    found += layer_rules("fc_head/fc1", f"{HEAD}fc6", FIRST_DENSE)
    found += layer_rules("fc_head/fc2", f"{HEAD}fc7", DENSE)
    found += _conv_head_rules(config.model.conv_head.blocks)
    for head, ending in (("fc_head", "_fc"), ("conv_head", "")):
        ours = f"{head}/predictors"
        classes, deltas = f"{PREDICTOR}cls_score{ending}", f"{PREDICTOR}bbox_pred{ending}"
        found += layer_rules(f"{ours}/class_predictor", classes, BACKGROUND_FIRST)
        found += layer_rules(f"{ours}/box_predictor", deltas, BACKGROUND_DELTAS)
    return found


def _conv_head_rules(blocks: int) -> list[Rule]:
    up_block = f"{HEAD}nonlocal_conv."
    found = []
    for ours, path, conv in (("conv1", "bottom", 0), ("conv2", "bottom", 3), ("shortcut", "top", 0)):
        theirs = f"{up_block}{path}."
        found += conv_norm_rules(f"conv_head/up_block/{ours}", f"{theirs}{conv}", f"{theirs}{conv + 1}")
    for block in range(blocks):
        theirs = f"{HEAD}shared_nonlocal.{block}."
        ours = f"conv_head/non_local{block}"
        for name in ("theta", "phi", "g"):
            found += layer_rules(f"{ours}/{name}", f"{theirs}{name}", CONV)
        found += layer_rules(f"{ours}/output_conv", f"{theirs}W.0", CONV)
        found += norm_rules(f"{ours}/norm", f"{theirs}W.bn")
        for index in range(3):
            conv = f"{theirs}ffconv.bottleneck."
            found += conv_norm_rules(
                f"conv_head/bottleneck{block}/conv{index + 1}", f"{conv}{3 * index}", f"{conv}{3 * index + 1}"
            )
    return found


def _check_anchors(tensors: Mapping[str, np.ndarray], config: Config, source: str) -> None:
    """The file's anchors (inclusive x1 y1 x2 y2), where it keeps them, must be the ones that we generate."""
    rpn = config.model.rpn
    for index, (size, stride) in enumerate(zip(rpn.anchor_sizes, LEVEL_STRIDES.values(), strict=True)):
        theirs = tensors.get(f"{ANCHORS}{index}")
        if theirs is None:
            continue
        ours = cell_anchors(size, rpn.anchor_ratios, stride, geometry="legacy")
        expected = ours[:, [1, 0, 3, 2]] - [0.0, 0.0, 1.0, 1.0]
        if theirs.shape != expected.shape or np.abs(theirs - expected).max() > 1e-3:
            raise DataError(f"{source}: tensor {ANCHORS}{index} has other anchors than the published models")
