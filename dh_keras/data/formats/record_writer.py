"""Write a split to TFRecord files in the Model Garden's detection schema, with its categories beside them."""

import os
from pathlib import Path

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from dh_keras.data.dataset import CocoDataset, TruthBoxes
from dh_keras.data.formats.tfrecord import SIDECAR_SUFFIX
from dh_keras.errors import DataError
from dh_keras.files import filled_folder, require_absent, write_json
from dh_keras.paths import to_path


def write_tfrecords(dataset: CocoDataset, prefix: str | Path, *, shards: int) -> list[Path]:
    """Write PREFIX-00000-of-0000N.tfrecord and so on, and PREFIX.categories.json.

    Image files are copied byte by byte. Crowds are written and marked; boxes are not clipped; degenerate ones are left
    out. Image i goes to shard i modulo `shards`. Files appear under their names when all of them are complete.

    Args:
        dataset: what to write, from `load_coco`.
        prefix: path and first part of the names; its folder is made.
        shards: number of files, 1 to the number of images.

    Returns:
        The files, the categories last.

    Raises:
        DataError: when a file of that name exists, or shards cannot be filled; nothing is written.
    """
    prefix = to_path(prefix)
    names = [f"{prefix.name}-{shard:05d}-of-{shards:05d}.tfrecord" for shard in range(shards)]
    names.append(prefix.name + SIDECAR_SUFFIX)
    if not 1 <= shards <= len(dataset):
        raise DataError(f"shards: expected 1 to {len(dataset)}, the number of images, got {shards}")
    paths = [prefix.parent / name for name in names]
    for path in paths:
        require_absent(path)
    with filled_folder(prefix.parent) as folder:
        _write_shards(dataset, [folder / name for name in names[:-1]])
        categories = [{"id": row["id"], "name": row["name"]} for row in dataset.category_rows]
        write_json(folder / names[-1], {"categories": categories})
        for path in paths:
            require_absent(path)
    return paths


def _write_shards(dataset: CocoDataset, paths: list[Path]) -> None:
    names = {row["id"]: row["name"] for row in dataset.category_rows}
    objects = dataset.truth.by_image(len(dataset))
    with tqdm(total=len(dataset), desc="writing records", unit="image") as bar:
        for shard, path in enumerate(paths):
            with tf.io.TFRecordWriter(str(path)) as writer:
                for index in range(shard, len(dataset), len(paths)):
                    writer.write(make_example(dataset, index, objects[index], names).SerializeToString())
                    bar.update()


def make_example(dataset: CocoDataset, index: int, truth: TruthBoxes, names: dict[int, str]) -> tf.train.Example:
    """Make the record of one image.

    Args:
        dataset: where the image is from.
        index: of the image.
        truth: its boxes and crowds.
        names: category id -> name.
    """
    from official.vision.data.tf_example_builder import TfExampleBuilder

    encoded = to_path(dataset.paths[index]).read_bytes()
    height, width = dataset.sizes[index].tolist()
    xywh, category_ids = truth.xywh, truth.category_ids.tolist()
    left, top, right, bottom = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1).T
    builder = TfExampleBuilder()
    builder.add_encoded_image_feature(
        encoded,
        image_format="PNG" if encoded.startswith(b"\x89PNG") else "JPEG",
        height=height,
        width=width,
        num_channels=3,
        image_source_id=str(dataset.image_ids[index]).encode(),
    )
    builder.add_boxes_feature(
        xmins=(left / width).tolist(),
        xmaxs=(right / width).tolist(),
        ymins=(top / height).tolist(),
        ymaxs=(bottom / height).tolist(),
        labels=category_ids,
    )
    builder.add_bytes_feature("image/filename", os.path.basename(dataset.paths[index]))
    builder.add_bytes_feature("image/object/class/text", [names[number] for number in category_ids])
    builder.add_ints_feature("image/object/is_crowd", truth.crowd.astype(int).tolist())
    builder.add_floats_feature("image/object/area", truth.areas.tolist())
    return builder.example
