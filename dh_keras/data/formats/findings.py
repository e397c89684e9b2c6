"""A fault of a data set: what the reader of annotations notices, and what the data doctor adds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Picture:
    """An image of a finding and the boxes it is about.

    Args:
        path: absolute path of the image file.
        orientation: EXIF orientation to apply.
        boxes: y1 x1 y2 x2 in pixels of the upright image.
        labels: one for each box.
    """

    path: str
    orientation: int
    boxes: tuple[tuple[float, ...], ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """One fault.

    Args:
        kind: key of the data doctor's `KINDS`.
        split: "train", "val" or "train, val"; empty where nobody asks.
        message: one line that names the file, the annotation or the category.
        pictures: where it can be seen; none for a file that cannot be read.
        annotation_ids: ids of the annotations it is about, as in the file.
        refusal: for an error of the annotation file, what training says of it, after the name of the file; None for
            what it mends.
    """

    kind: str
    split: str
    message: str
    pictures: tuple[Picture, ...] = ()
    annotation_ids: tuple[object, ...] = ()
    refusal: str | None = None
