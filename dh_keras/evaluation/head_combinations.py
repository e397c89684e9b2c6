"""The four combinations of the heads of a detector whose heads predict both classes and boxes (paper, table 6)."""

# Name of each combination of the heads: where the score and the box come from.
HEAD_COMBINATIONS = {
    "fc/fc": ("fc", "fc"),
    "conv/conv": ("conv", "conv"),
    "fc/conv": ("fc", "conv"),
    "fused/conv": ("fused", "conv"),
}
