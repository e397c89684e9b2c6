"""The seven detectors of the paper (figure 1 and table 1) as data: which head exists, and what it predicts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class HeadSpec:
    """One second-stage head.

    Args:
        name: attribute and layer name inside the model.
        kind: "fc" (two fully connected layers) or "conv" (residual and non-local blocks).
        classes: whether it predicts class logits.
        boxes: whether it predicts box deltas.
    """

    name: str
    kind: str
    classes: bool
    boxes: bool


@dataclass(frozen=True)
class Variant:
    """One row of the table of variants.

    Args:
        name: as `model.variant` gives it.
        heads: the heads that exist; a prediction is named `{kind}_class_logits` or `{kind}_box_deltas`.
        score_from: "fc", "conv", or "fused" for 1 - (1 - p_fc)(1 - p_conv) (paper, section 4.3).
        boxes_from: "fc" or "conv".
        loss_weights: the published weight of each second-stage loss that exists, by the name of its config key.
    """

    name: str
    heads: tuple[HeadSpec, ...]
    score_from: str
    boxes_from: str
    loss_weights: dict[str, float]

    @property
    def scores_before_boxes(self) -> bool:
        """Whether the score is known before the conv-head, which only places the boxes, has run."""
        return self.score_from == "fc" and self.boxes_from == "conv"


def make_variant(*, heads: Sequence[dict[str, Any]], **fields: Any) -> Variant:
    """A variant from its fields as `dataclasses.asdict` gives them."""
    return Variant(heads=tuple(HeadSpec(**head) for head in heads), **fields)


_VARIANTS = (
    Variant(
        name="single_fc",
        heads=(HeadSpec("fc_head", "fc", classes=True, boxes=True),),
        score_from="fc",
        boxes_from="fc",
        loss_weights={"fc_class": 1.0, "fc_box": 1.0},
    ),
    Variant(
        name="single_conv",
        heads=(HeadSpec("conv_head", "conv", classes=True, boxes=True),),
        score_from="conv",
        boxes_from="conv",
        loss_weights={"conv_class": 1.0, "conv_box": 1.0},
    ),
    Variant(
        name="double_fc",
        heads=(
            HeadSpec("fc_class_head", "fc", classes=True, boxes=False),
            HeadSpec("fc_box_head", "fc", classes=False, boxes=True),
        ),
        score_from="fc",
        boxes_from="fc",
        loss_weights={"fc_class": 2.0, "fc_box": 2.5},
    ),
    Variant(
        name="double_conv",
        heads=(
            HeadSpec("conv_class_head", "conv", classes=True, boxes=False),
            HeadSpec("conv_box_head", "conv", classes=False, boxes=True),
        ),
        score_from="conv",
        boxes_from="conv",
        loss_weights={"conv_class": 2.0, "conv_box": 2.5},
    ),
    Variant(
        name="double_head",
        heads=(
            HeadSpec("fc_head", "fc", classes=True, boxes=False),
            HeadSpec("conv_head", "conv", classes=False, boxes=True),
        ),
        score_from="fc",
        boxes_from="conv",
        loss_weights={"fc_class": 2.0, "conv_box": 2.5},
    ),
    Variant(
        name="double_head_reverse",
        heads=(
            HeadSpec("fc_head", "fc", classes=False, boxes=True),
            HeadSpec("conv_head", "conv", classes=True, boxes=False),
        ),
        score_from="conv",
        boxes_from="fc",
        loss_weights={"conv_class": 2.0, "fc_box": 2.5},
    ),
    Variant(
        name="double_head_ext",
        heads=(
            HeadSpec("fc_head", "fc", classes=True, boxes=True),
            HeadSpec("conv_head", "conv", classes=True, boxes=True),
        ),
        score_from="fused",
        boxes_from="conv",
        loss_weights={"fc_class": 1.4, "fc_box": 0.6, "conv_class": 0.5, "conv_box": 2.0},
    ),
)
VARIANTS = {variant.name: variant for variant in _VARIANTS}
