"""The images and boxes of a split as flat NumPy arrays, whatever kind of file they came from.

This is one of the three places where a box order is converted: COCO's [x, y, width, height] comes in, the package's
[y1, x1, y2, x2] goes on. TensorFlow is imported only where pixels are read, so data can be checked anywhere.

Letters: N images, M boxes that can be targets, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dh_keras.paths import is_remote, to_path
from dh_keras.run.classes import Category, class_labels

if TYPE_CHECKING:
    import tensorflow as tf

# Clipping that moves no side by more than this many pixels is rounding in the file, not a box outside the image.
CLIP_TOLERANCE = 1e-2


@dataclass(frozen=True)
class TruthBoxes:
    """The file's boxes and crowds without degenerate ones, not clipped, in the order of the file; T rows.

    Args:
        images: int64[T], image index.
        category_ids: int64[T], ids of this file.
        xywh: float64[T, 4], left, top, width and height in pixels of the upright image.
        areas: float64[T], pixels; those of the boxes where the file has none.
        crowd: bool[T].
    """

    images: np.ndarray
    category_ids: np.ndarray
    xywh: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray

    def by_image(self, num_images: int) -> "list[TruthBoxes]":
        """Return the rows of each image."""
        order = np.argsort(self.images, kind="stable")
        ends = np.cumsum(np.bincount(self.images, minlength=num_images))
        columns = (self.images, self.category_ids, self.xywh, self.areas, self.crowd)
        parts = [np.split(column[order], ends[:-1]) for column in columns]
        return [TruthBoxes(*rows) for rows in zip(*parts, strict=True)]


@dataclass
class CocoDataset:
    """An annotation file and its images.

    Args:
        annotations_path: the COCO JSON, or the pattern of TFRecord files; how messages call the split.
        images_dir: the folder of the images.
        categories: class index k is categories[k]; sorted by id, or in the order that was given to `load_coco`.
        category_ids: int64[K], class index -> category id in this file (ids of `categories` may be another file's).
        image_ids: int64[N], as in the file; 1..N when the file's ids are not integers.
        paths: absolute path of every image; how messages call it.
        sizes: int32[N, 2], (height, width) of the upright image, the frame of the boxes.
        orientations: int32[N], EXIF orientation 1..8 to apply to the decoded pixels to make the image upright.
        box_offsets: int64[N + 1], the boxes of image i are rows box_offsets[i]:box_offsets[i + 1].
        boxes: float32[M, 4], y1 x1 y2 x2 in pixels of the upright image, clipped to it; no crowd, none degenerate.
        classes: int32[M], class index of every box.
        truth: what detections are compared with.
        file_names: of the images, as in the file.
        category_rows: the categories as in the file, with integer ids.
        counts: what was found and mended, by name.
    """

    annotations_path: Path
    images_dir: Path
    categories: tuple[Category, ...]
    category_ids: np.ndarray
    image_ids: np.ndarray
    paths: list[str]
    sizes: np.ndarray
    orientations: np.ndarray
    box_offsets: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    truth: TruthBoxes = field(repr=False)
    file_names: list[str] = field(repr=False)
    category_rows: list[dict] = field(repr=False)
    counts: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    @property
    def num_classes(self) -> int:
        """Number of classes, background not counted."""
        return len(self.categories)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of every class, by class index."""
        return tuple(category.name for category in self.categories)

    def coco_tree(self) -> dict:
        """Make the COCO dict of `truth` that pycocotools reads without a trap.

        It drops id 0, merges equal ids and needs area and iscrowd. Memory goes to this as long as it is kept: about
        half a kilobyte for each box.
        """
        truth, keys = self.truth, ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
        values = (self.image_ids[truth.images], truth.category_ids, truth.xywh, truth.areas, truth.crowd.astype(int))
        rows = zip(range(1, len(truth.xywh) + 1), *(value.tolist() for value in values), strict=True)
        return {
            "images": [
                {"id": number, "file_name": name, "height": height, "width": width}
                for number, name, (height, width) in zip(
                    self.image_ids.tolist(), self.file_names, self.sizes.tolist(), strict=True
                )
            ],
            "annotations": [dict(zip(keys, row, strict=True)) for row in rows],
            "categories": self.category_rows,
        }

    def bytes_reader(self) -> "Callable[[tf.Tensor], tf.Tensor]":
        """Return a graph function from an image index, int[], to the bytes of its JPEG or PNG file, string[]."""
        import tensorflow as tf

        paths = tf.constant(self.paths, tf.string)
        if not is_remote(self.images_dir):
            return lambda index: tf.io.read_file(paths[index])

        def read_remote(path: bytes | np.ndarray) -> bytes:
            return to_path(np.asarray(path).item().decode()).read_bytes()

        def read(index: tf.Tensor) -> tf.Tensor:
            return tf.ensure_shape(tf.numpy_function(read_remote, [paths[index]], tf.string), [])

        return read

    def boxes_of(self, index: int) -> np.ndarray:
        """Return float32[n, 4], the y1 x1 y2 x2 boxes of image `index` in its own pixels."""
        return self.boxes[self.box_offsets[index] : self.box_offsets[index + 1]]

    def classes_of(self, index: int) -> np.ndarray:
        """Return int32[n], the class indices of the boxes of image `index`."""
        return self.classes[self.box_offsets[index] : self.box_offsets[index + 1]]

    def summary(self) -> str:
        """Return a line with the counts that are not zero, and a table of the categories with their boxes."""
        per_class = np.bincount(self.classes, minlength=self.num_classes)
        rows = [("id", "category", "boxes")]
        rows += [
            (str(number), name, str(boxes))
            for number, name, boxes in zip(self.category_ids, class_labels(self.class_names), per_class, strict=True)
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [f"{row[0]:>{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}" for row in rows]
        return "\n".join([self.counts_line, *lines])

    @property
    def counts_line(self) -> str:
        """The counts that are not zero, such as "100 images, 419 boxes"."""
        shown = {name: count for name, count in self.counts.items() if count or name in ("images", "boxes")}
        return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in shown.items())


def has_size(xywh: np.ndarray) -> np.ndarray:
    """Return bool[M], which COCO boxes float[M, 4] are finite and have a width and a height."""
    return np.isfinite(xywh).all(axis=1) & (xywh[:, 2:] > 0).all(axis=1)


def boxes_from_xywh(xywh: np.ndarray) -> np.ndarray:
    """Convert COCO boxes to the package's order.

    Args:
        xywh: float[..., 4], left, top, width and height in pixels.

    Returns:
        float[..., 4], y1 x1 y2 x2 in the same pixels, same dtype.

    Example:
        >>> boxes_from_xywh(np.array([[10.0, 20.0, 5.0, 7.0]])).tolist()
        [[20.0, 10.0, 27.0, 15.0]]
    """
    x, y, width, height = np.moveaxis(np.asarray(xywh), -1, 0)
    return np.stack([y, x, y + height, x + width], axis=-1)


def build_dataset(
    kind: type[CocoDataset],
    *,
    columns: dict[str, Any],
    counts: dict[str, int],
    **fields: Any,
) -> CocoDataset:
    """Flatten annotations and build a split.

    Args:
        kind: `CocoDataset` or a subclass.
        columns: one row per annotation: image int64 (an image index), category int64 (an id of category_ids), iscrowd
            bool, xywh float64[., 4] in pixels, NaN where there is no box, and area float64, NaN where it is unknown.
        counts: what else was found and mended, by name.
        fields: the fields of `kind` that are not made here.
    """
    flat = _flatten(columns, fields["sizes"], fields["category_ids"])
    return kind(
        box_offsets=flat["offsets"],
        boxes=flat["boxes"],
        classes=flat["classes"],
        truth=_truth(columns, flat["usable"]),
        counts=_count(columns, flat, fields["orientations"]) | counts,
        **fields,
    )


def _flatten(columns: dict[str, Any], sizes: np.ndarray, category_ids: np.ndarray) -> dict[str, Any]:
    """Clip, drop what cannot be used, and sort the targets by image (order within an image as in the file)."""
    xywh, image = columns["xywh"], columns["image"]
    usable = has_size(xywh)
    with np.errstate(invalid="ignore", over="ignore"):
        whole = boxes_from_xywh(xywh)
        limit = np.tile(sizes[image].astype(np.float64), 2)
        boxes = np.clip(whole, 0, limit).astype(np.float32)
        usable &= (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        moved = (np.abs(boxes - whole) > CLIP_TOLERANCE).any(axis=1)
    target = usable & ~columns["iscrowd"]
    rows = np.flatnonzero(target)[np.argsort(image[target], kind="stable")]
    by_id = np.argsort(category_ids)
    classes = by_id[np.searchsorted(category_ids[by_id], columns["category"][rows])]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(image[rows], minlength=len(sizes)))])
    return {
        "usable": usable,
        "clipped": int(np.sum(moved & target)),
        "boxes": boxes[rows],
        "classes": classes.astype(np.int32),
        "offsets": offsets.astype(np.int64),
    }


def _count(columns: dict[str, Any], flat: dict[str, Any], orientations: np.ndarray) -> dict[str, int]:
    usable = flat["usable"]
    return {
        "images": len(orientations),
        "boxes": len(flat["boxes"]),
        "crowd": int(np.sum(columns["iscrowd"][usable])),
        "degenerate": int(np.sum(~usable)),
        "clipped": flat["clipped"],
        "empty_images": int(np.sum(np.diff(flat["offsets"]) == 0)),
        "exif_rotated": int(np.sum(orientations != 1)),
        "filled_areas": int(np.sum(np.isnan(columns["area"][usable]))),
    }


def _truth(columns: dict[str, Any], usable: np.ndarray) -> TruthBoxes:
    xywh, areas = columns["xywh"][usable], columns["area"][usable]
    return TruthBoxes(
        images=columns["image"][usable],
        category_ids=columns["category"][usable],
        xywh=xywh,
        areas=np.where(np.isnan(areas), xywh[:, 2] * xywh[:, 3], areas),
        crowd=columns["iscrowd"][usable],
    )
