"""Fixed facts of the method: values that are the same in every published Double-Head R-CNN."""

PYRAMID_LEVELS = ("P2", "P3", "P4", "P5", "P6")
ROI_LEVELS = ("P2", "P3", "P4", "P5")
LEVEL_STRIDES = {"P2": 4, "P3": 8, "P4": 16, "P5": 32, "P6": 64}

# Padded image sides are multiples of this; P6 is a subsample of P5, so the deepest convolution has stride 32.
SIZE_DIVISOR = 32

# RoIAlign output cells per side, for both heads (paper, section 5.1).
ROI_OUTPUT_SIZE = 7
# An RoI whose sqrt(area) is this many pixels is pooled from P4 (FPN paper, equation 1).
CANONICAL_ROI_SIZE = 224.0
CANONICAL_ROI_LEVEL = 4

# Second-stage delta weights for (dy, dx, dh, dw); the RPN uses ones.
ROI_DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
RPN_DELTA_WEIGHTS = (1.0, 1.0, 1.0, 1.0)

# What a match index means when it is not the index of a ground-truth box.
MATCH_BACKGROUND = -1
MATCH_IGNORE = -2

# Batch normalisation: PyTorch's defaults in Keras' notation (Keras momentum = 1 - PyTorch momentum).
BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.9
GROUP_NORM_GROUPS = 32

# The six losses by their short names, with their names in logs, tables and messages. The short name of a head's loss is
# the key of its weight in a config (`model.loss_weights.fc_class`); those of the RPN have none and weigh 1.
LOSSES = {
    "rpn_objectness": "rpn_objectness_loss",
    "rpn_box": "rpn_box_loss",
    "fc_class": "fc_class_loss",
    "fc_box": "fc_box_loss",
    "conv_class": "conv_class_loss",
    "conv_box": "conv_box_loss",
}
LOSS_NAMES = tuple(LOSSES.values())

# What a network can be served in.
PRECISIONS = ("float32", "bfloat16")
# The kinds of machines that a graph can be for.
TARGETS = ("cpu", "gpu")
