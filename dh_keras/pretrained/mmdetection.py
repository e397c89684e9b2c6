"""Checkpoints of MMDetection's `double_heads`: plain Double-Head with four bottlenecks, continuous geometry.

Their background is the last class, as ours; their ResNets stride in the 3x3 convolution.
"""

from collections.abc import Mapping

import numpy as np

from dh_keras.config.load import resolve_pixels
from dh_keras.config.schema import IMAGENET_PIXELS, Config, LossWeightsConfig
from dh_keras.pretrained.resnet_names import count_blocks, infer_depth, resnet_rules
from dh_keras.pretrained.tensors import (
    ANCHOR_DELTAS,
    CONV,
    DELTAS,
    DENSE,
    FIRST_DENSE,
    Rule,
    conv_norm_rules,
    count_outputs,
    layer_rules,
)

FAMILY = "MMDetection (Double-Head)"
HEAD = "roi_head.bbox_head."

UNUSED = (r".*\.num_batches_tracked",)


def recognises(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the names are this family's."""
    return any(name.startswith(f"{HEAD}res_block.") for name in tensors)


def infer_config(tensors: Mapping[str, np.ndarray], source: str) -> tuple[Config, int]:
    """The network and its recipe, and K.

    Args:
        tensors: by name.
        source: what to call the file in errors.
    """
    config = Config()
    model = config.model
    model.variant, model.geometry = "double_head", "continuous"
    resolve_pixels(model, IMAGENET_PIXELS)
    model.backbone.depth = infer_depth(tensors, "backbone.", source)
    model.backbone.width = count_outputs(tensors, "backbone.conv1.weight", source)
    model.backbone.stride_in_1x1 = False
    model.fpn.channels = count_outputs(tensors, "neck.lateral_convs.0.conv.weight", source)
    model.rpn.low_quality_iou, model.rpn.ignore_border, model.rpn.box_loss_beta = 0.3, False, 0.0
    model.rpn.low_quality_own_box, model.rpn.post_nms_train = True, 1000
    model.roi.sampling_ratio = 0
    model.fc_head.channels = count_outputs(tensors, f"{HEAD}fc_branch.0.weight", source)
    model.conv_head.channels = count_outputs(tensors, f"{HEAD}res_block.conv2.conv.weight", source)
    model.conv_head.blocks = count_blocks(tensors, f"{HEAD}conv_branch.")
    model.loss_weights = LossWeightsConfig(fc_class=2.0, fc_box=0.0, conv_class=0.0, conv_box=2.0)
    config.data.batch_size, config.train.base_batch_size, config.train.lr = 16, 16, 0.02
    config.train.epochs, config.train.steps, config.train.drops, config.train.warmup_factor = 12, None, [8, 11], 0.001
    return config, count_outputs(tensors, f"{HEAD}fc_cls.weight", source) - 1


def rules(config: Config) -> list[Rule]:
    """Where every variable of the network comes from."""
    found = resnet_rules(config.model.backbone.depth, prefix="backbone.")
    for level in range(4):
        found += layer_rules(f"fpn/lateral_c{level + 2}", f"neck.lateral_convs.{level}.conv", CONV)
        found += layer_rules(f"fpn/output_p{level + 2}", f"neck.fpn_convs.{level}.conv", CONV)
    found += layer_rules("rpn_head/conv", "rpn_head.rpn_conv", CONV)
    found += layer_rules("rpn_head/objectness_predictor", "rpn_head.rpn_cls", CONV)
    found += layer_rules("rpn_head/delta_predictor", "rpn_head.rpn_reg", ANCHOR_DELTAS)
    found += layer_rules("fc_head/fc1", f"{HEAD}fc_branch.0", FIRST_DENSE)
    found += layer_rules("fc_head/fc2", f"{HEAD}fc_branch.1", DENSE)
    found += layer_rules("fc_head/predictors/class_predictor", f"{HEAD}fc_cls", DENSE)
    for ours, theirs in (("conv1", "conv1"), ("conv2", "conv2"), ("shortcut", "conv_identity")):
        theirs = f"{HEAD}res_block.{theirs}"
        found += conv_norm_rules(f"conv_head/up_block/{ours}", f"{theirs}.conv", f"{theirs}.bn")
    for block in range(config.model.conv_head.blocks):
        theirs = f"{HEAD}conv_branch.{block}."
        for conv in (1, 2, 3):
            ours = f"conv_head/bottleneck{block}/conv{conv}"
            found += conv_norm_rules(ours, f"{theirs}conv{conv}", f"{theirs}bn{conv}")
    found += layer_rules("conv_head/predictors/box_predictor", f"{HEAD}fc_reg", DELTAS)
    return found
