"""A split together with what decoding its files told: the boxes that can be used, in pixels of their images.

Letters: N images, M boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dh_keras.data.dataset import boxes_from_xywh
from dh_keras.data.formats.coco_file import CocoFile
from dh_keras.data.formats.findings import Finding, Picture
from dh_keras.reports.data_doctor.file_scan import FileFacts, examine_files


@dataclass
class Examined:
    """A split whose files were decoded.

    Args:
        split: the usable rows of its JSON.
        facts: of its N files.
        good: bool[N], the file can be used as it is.
        sizes: int64[N, 2], (height, width) of the upright image; 1 x 1 where there is none.
        whole: float64[M, 4], boxes y1 x1 y2 x2 as annotated.
        boxes: float64[M, 4], clipped to the image.
        usable: bool[M], what training uses as a target: in a good file, with an area, no crowd.
        colors: float32[M, 3], mean RGB in 0..255 inside the box.
    """

    split: CocoFile
    facts: list[FileFacts]
    good: np.ndarray
    sizes: np.ndarray
    whole: np.ndarray
    boxes: np.ndarray
    usable: np.ndarray
    colors: np.ndarray

    def class_of(self, box: int) -> str:
        """Return the class name of a box."""
        return self.split.class_names[self.split.box_classes[box]]

    def class_counts(self) -> dict[str, int]:
        """Return the number of usable boxes of each class."""
        names = self.split.class_names
        counts = np.bincount(self.split.box_classes[self.usable], minlength=len(names))
        return dict(zip(names, counts.tolist(), strict=True))

    def box_sides(self) -> np.ndarray:
        """Return float64[M, 2], (height, width) of the clipped boxes."""
        return self.boxes[:, 2:] - self.boxes[:, :2]

    def picture(self, image: int, boxes: Sequence[int] = ()) -> tuple[Picture, ...]:
        """Return the picture of an image with some of its boxes; none when its file cannot be shown."""
        if self.facts[image].size is None or not self.good[image]:
            return ()
        shown = [box for box in boxes if np.isfinite(self.whole[box]).all()]
        path, orientation = self.split.images[image].path, self.facts[image].orientation
        corners = tuple(tuple(self.whole[box].tolist()) for box in shown)
        return (Picture(path, orientation, corners, tuple(self.class_of(box) for box in shown)),)

    def box_finding(self, kind: str, *boxes: int, message: str) -> Finding:
        """Return a finding about boxes of one image, named in front of the message."""
        split = self.split
        image = int(split.box_images[boxes[0]])
        numbers = tuple(split.annotation_id(box) for box in boxes)
        named = " and ".join(f"{self.class_of(box)} {number!r:.40}" for box, number in zip(boxes, numbers, strict=True))
        text = f"{split.images[image].file_name}: {named}: {message}"
        return Finding(kind, split.name, text, self.picture(image, boxes), numbers)


@dataclass
class Diagnosis:
    """What is known about a data set.

    Args:
        splits: train, and val if it was given.
        findings: everything that was found, in no order.
        coverage: {split: result of `anchor_coverage`}.
        refusal: the line with which training would refuse the data, or None.
    """

    splits: list[Examined]
    findings: list[Finding]
    coverage: dict[str, dict]
    refusal: str | None


def class_names_of(splits: Sequence[Examined]) -> list[str]:
    """Return the class names of all splits, each once."""
    return list(dict.fromkeys(name for examined in splits for name in examined.split.class_names))


def rows_by_image(box_images: np.ndarray, images: int) -> list[np.ndarray]:
    """Return, for each of so many images, which entries of int64[M] are its own, in their order."""
    ends = np.cumsum(np.bincount(box_images, minlength=images))[:-1]
    return np.split(np.argsort(box_images, kind="stable"), ends) if images else []


def examine_split(split: CocoFile) -> Examined:
    """Decode all files of a split and bring its boxes into their pixels."""
    whole = boxes_from_xywh(split.xywh)
    groups = rows_by_image(split.box_images, len(split.images))
    tasks = [(image.path, image.declared, whole[rows]) for image, rows in zip(split.images, groups, strict=True)]
    facts = examine_files(tasks, label=split.name)
    good = np.array([fact.error is None for fact in facts], bool)
    sizes = np.array([fact.size or (1, 1) for fact in facts], np.int64).reshape(-1, 2)
    limits = np.tile(sizes[split.box_images], 2).astype(np.float64)
    with np.errstate(invalid="ignore"):
        boxes = np.clip(whole, 0, limits)
        has_area = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]) & np.isfinite(whole).all(axis=1)
    colors = np.full((len(whole), 3), np.nan, np.float32)
    for fact, rows in zip(facts, groups, strict=True):
        if fact.colors is not None:
            colors[rows] = fact.colors
    usable = has_area & good[split.box_images] & ~split.crowd
    return Examined(split, facts, good, sizes, whole, boxes, usable, colors)
