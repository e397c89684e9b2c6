"""What the readers of this room find: images with boxes, and what could not be read.

Boxes are COCO's here: left, top, width and height in continuous pixels of the upright image.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dh_keras.errors import DataError, pip_install, visible

if TYPE_CHECKING:
    from globox import BoundingBox  # xmin, ymin, xmax and ymax in pixels

XYWH = tuple[float, float, float, float]


@dataclass(frozen=True)
class LabelledBox:
    """A box of an image.

    Args:
        name: of its class.
        xywh: left, top, width and height in pixels.
        crowd: it stands for several objects.
        area: pixels of a mask; None where the box is all there is.
    """

    name: str
    xywh: XYWH
    crowd: bool = False
    area: float | None = None


@dataclass
class LabelledImage:
    """An image that somebody has looked at, with or without boxes.

    Args:
        path: absolute.
        size: (height, width) in pixels, as the annotation says or the file; None when the annotation has none.
        boxes: in the order of the annotation.
        part: "train", "val" or another where the source has parts.
        source: the annotation file, for messages.
    """

    path: str
    size: tuple[int, int] | None
    boxes: list[LabelledBox] = field(default_factory=list)
    part: str = ""
    source: str = ""


@dataclass
class Labelled:
    """All that a source holds.

    Args:
        format: its name, for people.
        images: each file once.
        classes: the names that the source lists, in its order; None where only boxes have names.
        faults: what could not be read, one line each, with the file and the line in it.
        left_out: what is no box, as {what: how many}.
        notes: what was decided, one line each.
    """

    format: str
    images: list[LabelledImage] = field(default_factory=list)
    classes: list[str] | None = None
    faults: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def fault(self, path: str | Path, line: int | None, message: str) -> None:
        """Note what could not be read in a line of a file, or in all of it."""
        self.faults.append(visible(f"{path}: " + (f"line {line}: " if line else "") + message))

    def read_box(
        self, path: str | Path, line: int | None, expected: str, read: Callable[..., "BoundingBox"], *args: Any
    ) -> LabelledBox | None:
        """Call a reader of the library; what it cannot read becomes a fault, and None is returned.

        Args:
            path, line: where the box stands.
            expected: what should have stood there.
            read: a constructor of `BoundingBox`.
            args: what it is called with.
        """
        try:
            box = read(*args)
        except Exception:  # it raises errors of its own, and asserts; none says more than that it cannot
            box = None
        if box is None or not box.label or not all(map(math.isfinite, box.ltwh)):
            self.fault(path, line, f"expected {expected}")
            return None
        return LabelledBox(box.label, tuple(map(float, box.ltwh)))


def box_reader(path: str | Path) -> "type[BoundingBox]":
    """Return the library's box, which is made from what each of the formats writes.

    Raises:
        DataError: naming the file and what to install, where the library is missing.
    """
    try:
        from globox import BoundingBox
    except ImportError as error:
        raise DataError(f"{path}: globox is needed to read what is no COCO JSON; {pip_install('formats')}") from error
    return BoundingBox
