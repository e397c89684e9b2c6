"""The four combinations of the heads of a detector whose heads predict both classes and boxes (paper, table 6)."""

# Name in results: the head that the score of a detection comes from ("fused" of both), and the one of its box.
HEAD_COMBINATIONS = {
    "fc/fc": ("fc", "fc"),
    "conv/conv": ("conv", "conv"),
    "fc/conv": ("fc", "conv"),
    "fused/conv": ("fused", "conv"),
}
