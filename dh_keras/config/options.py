"""What a value of the config may be: said beside its field in the schema, checked and documented from there."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_LIMITS = "limits"


@dataclass(frozen=True)
class Limits:
    """What a value may be; of a list, each of its numbers. A number is finite in any case.

    Args:
        choices: all there is to choose from; () when that is not a list.
        above: numbers are larger than this.
        least: numbers are at least this.
        most: numbers are at most this.
        length: how many values a list has; None leaves it open.
        filled: whether a list must have a value.
        wording: what is expected, for people, in the place of the words that are made of the above.
    """

    choices: tuple[Any, ...] = ()
    above: float | None = None
    least: float | None = None
    most: float | None = None
    length: int | None = None
    filled: bool = False
    wording: str = ""

    def allow(self, value: Any) -> bool:
        """Whether a value is within the limits. None is: OmegaConf refuses it where the type does."""
        if value is None:
            return True
        if self.choices:
            return value in self.choices
        if not isinstance(value, list):
            return self._allow_number(value)
        if len(value) < self.filled or self.length not in (None, len(value)):
            return False
        return all(map(self._allow_number, value))

    def _allow_number(self, value: Any) -> bool:
        return (
            (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
        )

    @property
    def expected(self) -> str:
        """The limits in words, such as "a number from 0 to 1"; empty without limits."""
        if self.wording or self == Limits():
            return self.wording
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        if self.above is not None:
            return f"a number above {self.above} and at most {self.most}"
        return f"a number from {self.least} to {self.most}"


def option(default: Any, **limits: Any) -> Any:
    """A field of a config dataclass.

    Args:
        default: its value; a list is copied for every config.
        **limits: of `Limits`.
    """
    metadata = {_LIMITS: Limits(**limits)}
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def options(config: Any, path: str = "") -> Iterator[tuple[str, Any, Limits]]:
    """Dotted key, value and limits of everything in a config, or in a part that `path` (with a dot) leads to."""
    for part in dataclasses.fields(config):
        key, value = f"{path}{part.name}", getattr(config, part.name)
        if dataclasses.is_dataclass(value):
            yield from options(value, f"{key}.")
        else:
            yield key, value, part.metadata.get(_LIMITS, Limits())


def flatten(config: Any) -> dict[str, Any]:
    """Every value of a config by its dotted key, such as "model.rpn.nms_iou"."""
    return {key: value for key, value, _ in options(config)}


def is_finite(value: Any) -> bool:
    """Whether no number in a value, however deep in lists and dicts, is infinite or NaN."""
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    if isinstance(value, list):
        return all(map(is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
