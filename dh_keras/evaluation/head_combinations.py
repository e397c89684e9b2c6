"""The four combinations of the heads of a detector whose heads predict both classes and boxes (paper, table 6)."""

from typing import NamedTuple


class HeadCombination(NamedTuple):
    """Where the score and the box of a detection come from.

    Args:
        score_from: "fc", "conv" or "fused".
        boxes_from: "fc" or "conv".
    """

    score_from: str
    boxes_from: str

    @property
    def name(self) -> str:
        """How results call it, such as "fc/conv"."""
        return f"{self.score_from}/{self.boxes_from}"


_ALL = (("fc", "fc"), ("conv", "conv"), ("fc", "conv"), ("fused", "conv"))
HEAD_COMBINATIONS = {one.name: one for one in (HeadCombination(*sources) for sources in _ALL)}
