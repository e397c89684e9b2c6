"""Training images from TFRecord files in the Model Garden's detection schema.

The files are looked through once, when they are opened: where every record starts, how large its image is, and its
boxes. From then on they are a split like any other: records are read by their places in the files, in the order of a
plan of image indices. So an epoch has as many steps as with a folder of the same images, batches have one canvas, the
order is that of the seed, workers share every batch, and a run goes on from any step. Files are not compressed.

The schema is that of `official.vision.dataloaders.tf_example_decoder`: boxes from 0 to 1, labels are category ids.
Their names come from a small JSON file beside the records, PREFIX.categories.json, or from the validation split.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from dh_keras.data.dataset import CocoDataset, build_dataset
from dh_keras.data.formats.coco import read_categories
from dh_keras.data.formats.coco_entries import parse_categories
from dh_keras.data.formats.record_scan import read_record, scan_offsets, scan_records
from dh_keras.errors import DataError
from dh_keras.paths import absolute, is_remote, matching, to_path
from dh_keras.run.classes import Category

SIDECAR_SUFFIX = ".categories.json"
_SHARD = re.compile(r"-\d+-of-\d+(\.\w+)?$")
# Coordinates above this are pixels, not shares of a side; a little above 1 is an annotation over the border.
_LARGEST_COORDINATE = 2.0
_READ_BUFFER = 262144


@dataclass(kw_only=True)
class RecordDataset(CocoDataset):
    """A split whose images lie in TFRecord files; `paths` are FILE/image_ID, the other fields as in `CocoDataset`.

    Args:
        record_files: the files, in the order of their names.
        file_index: int32[N], file of every image.
        record_offsets: int64[N], bytes before its record.
    """

    record_files: tuple[str, ...]
    file_index: np.ndarray
    record_offsets: np.ndarray

    def bytes_reader(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """Return a graph function from an image index, int[], to the bytes of its JPEG or PNG file, string[]."""
        files = tf.constant(self.record_files, tf.string)
        file_index = tf.constant(self.file_index, tf.int32)
        offsets = tf.constant(self.record_offsets, tf.int64)
        read_one = _read_remote_record if is_remote(self.record_files[0]) else _read_record

        def read(index: tf.Tensor) -> tf.Tensor:
            record = read_one(files[file_index[index]], offsets[index])
            feature = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}
            return tf.io.parse_single_example(record, feature)["image/encoded"]

        return read


def _read_record(file: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """Read and check one record; `tf.data.TFRecordDataset` has no argument for the place to start from."""
    kind = {"output_types": [tf.string], "output_shapes": [[]]}
    records = tf.raw_ops.TFRecordDatasetV2(
        filenames=file[None],
        compression_type="",
        buffer_size=tf.constant(_READ_BUFFER, tf.int64),
        byte_offsets=offset[None],
    )
    first = tf.raw_ops.TakeDataset(input_dataset=records, count=tf.constant(1, tf.int64), **kind)
    return tf.raw_ops.DatasetToSingleElement(dataset=first, **kind)[0]


def _read_remote_record(file: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """Read one record of another file system; TensorFlow's own operations know none."""

    def read(name: bytes | np.ndarray, start: np.ndarray) -> bytes:
        return read_record(np.asarray(name).item().decode(), start)

    return tf.ensure_shape(tf.numpy_function(read, [file, offset], tf.string), [])


def load_tfrecords(pattern: str | Path, *, val_annotations: str | Path | None = None) -> RecordDataset:
    """Look through TFRecord files, check every record, and flatten the annotations.

    Args:
        pattern: of file names, such as "records/train-*.tfrecord".
        val_annotations: COCO JSON whose categories are used when no PREFIX.categories.json lies beside the files.

    Returns:
        A split to train on. Boxes that cannot be used are dropped and counted, crowds are no targets. Image ids are
        the numbers in image/source_id; an id that is no number becomes a hash of it, and a missing one of the image.

    Raises:
        DataError: one line naming the pattern or the file, what was expected and what to do.
    """
    files = _find_files(str(pattern))
    categories = _find_categories(str(pattern), files, val_annotations)
    offsets = [scan_offsets(file) for file in files]
    counts = [len(part) for part in offsets]
    if not sum(counts):
        raise DataError(f"TFRecords {pattern}: no record in {len(files)} files; write them again")
    records = scan_records(files, offsets)
    file_index = np.repeat(np.arange(len(files), dtype=np.int32), counts)
    image_ids = _image_ids(str(pattern), records["source_id"])
    paths = [f"{files[i]}/image_{number}" for i, number in zip(file_index, image_ids, strict=True)]
    category_ids = np.array([category.id for category in categories], np.int64)
    sizes = np.array(records["size"], np.int32)
    return build_dataset(
        RecordDataset,
        annotations_path=to_path(pattern),
        images_dir=to_path(files[0]).parent,
        categories=categories,
        category_ids=category_ids,
        image_ids=image_ids,
        paths=paths,
        sizes=sizes,
        orientations=np.array(records["orientation"], np.int32),
        record_files=tuple(files),
        file_index=file_index,
        record_offsets=np.concatenate(offsets),
        columns=_columns(records, sizes, paths, category_ids),
        category_rows=[{"id": category.id, "name": category.name} for category in categories],
        file_names=[os.path.basename(path) for path in paths],
        counts={},
    )


def _find_files(pattern: str) -> list[str]:
    matches = sorted(map(absolute, matching(pattern)))
    files = [match for match in matches if to_path(match).is_file() and not match.endswith(SIDECAR_SUFFIX)]
    if not files:
        raise DataError(
            f"TFRecords {pattern}: no such file; expected a pattern of files, such as records/train-*.tfrecord"
        )
    return files


def sidecar_of(file: str | Path) -> Path:
    """Return where the categories of a TFRecord file are looked for.

    Example:
        >>> str(sidecar_of("records/train-00000-of-00008.tfrecord"))
        'records/train.categories.json'
    """
    return to_path(_SHARD.sub("", str(file)) + SIDECAR_SUFFIX)


def _find_categories(pattern: str, files: list[str], val_annotations: str | Path | None) -> tuple[Category, ...]:
    sidecars = [path for path in dict.fromkeys(map(sidecar_of, files)) if path.is_file()]
    found = [_read_sidecar(path) for path in sidecars]
    for path, categories in zip(sidecars, found, strict=True):
        if categories != found[0]:
            raise DataError(f"categories {path}: differ from those in {sidecars[0]}; train on files of one data set")
    if found:
        return found[0]
    if val_annotations is not None:
        return read_categories(val_annotations)
    raise DataError(
        f"TFRecords {pattern}: no file {sidecar_of(files[0])} with the names of the classes; write the files with "
        "dh-keras make-tfrecords, or give validation annotations that have the same category ids"
    )


def _read_sidecar(path: Path) -> tuple[Category, ...]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["categories"]
        if not rows or not all(isinstance(row, dict) for row in rows):
            raise ValueError("no categories")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f'categories {path}: expected {{"categories": [{{"id": 1, "name": "..."}}, ...]}}; write the file again'
        ) from error
    return parse_categories(path, rows)


def _image_ids(pattern: str, source_ids: list[str]) -> np.ndarray:
    numbers = [_image_id(source_id) for source_id in source_ids]
    unique, count = np.unique(numbers, return_counts=True)
    if len(unique) < len(numbers):
        twice = source_ids[numbers.index(unique[count > 1][0])]
        raise DataError(
            f"TFRecords {pattern}: two records have the image/source_id {twice!r}; does the pattern match the same "
            "images twice?"
        )
    return np.array(numbers, np.int64)


def _image_id(source_id: str) -> int:
    if re.fullmatch(r"\d{1,18}", source_id):
        return int(source_id)
    return int.from_bytes(hashlib.sha256(source_id.encode()).digest()[:8], "big") >> 1


def _columns(records: dict[str, list], sizes: np.ndarray, paths: list[str], category_ids: np.ndarray) -> dict[str, Any]:
    """Return the boxes of all records as columns, see `build_dataset`."""
    image = np.repeat(np.arange(len(paths)), [len(labels) for labels in records["labels"]])
    category = np.concatenate(records["labels"]).astype(np.int64)
    shares = np.concatenate(records["boxes"]).astype(np.float64)
    unknown = np.flatnonzero(~np.isin(category, category_ids))
    if len(unknown):
        raise DataError(
            f"record {paths[image[unknown[0]]]}: label {category[unknown[0]]} is no category id; expected one of "
            f"{', '.join(map(str, category_ids[:10]))}{', ...' if len(category_ids) > 10 else ''}; "
            "use the categories that the files were written with"
        )
    pixels = np.flatnonzero((shares > _LARGEST_COORDINATE).any(axis=1))
    if len(pixels):
        raise DataError(
            f"record {paths[image[pixels[0]]]}: box {shares[pixels[0]].tolist()} (y1 x1 y2 x2) is in pixels; "
            "expected shares of the image's sides, from 0 to 1"
        )
    top, left, bottom, right = (shares * np.tile(sizes[image], 2)).T
    return {
        "image": image,
        "category": category,
        "iscrowd": np.concatenate(records["is_crowd"]).astype(bool),
        "xywh": np.stack([left, top, right - left, bottom - top], axis=1),
        "area": np.concatenate(records["area"]).astype(np.float64),
    }
