"""What must be the same for all workers of a training, by the names that a message calls it by."""

import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import dh_keras
from dh_keras.config.options import flatten
from dh_keras.config.schema import PATH_KEYS, Config
from dh_keras.data.augment_file import read_augment_file
from dh_keras.data.dataset import CocoDataset


def program_facts(*, addresses: Sequence[str], resume: bool) -> dict[str, Any]:
    """Package versions, devices and how the program was called; known before TensorFlow does anything."""
    return {
        "dh_keras version": dh_keras.__version__,
        "TensorFlow version": tf.__version__,
        "Keras version": keras.__version__,
        "the list of workers in TF_CONFIG": list(addresses),
        "number of GPUs": len(tf.config.list_physical_devices("GPU")),
        "--resume": resume,
    }


def config_facts(config: Config) -> dict[str, Any]:
    """The config without its paths; what is there is compared by `data_facts`."""
    return {key: value for key, value in flatten(config).items() if key not in PATH_KEYS}


def data_facts(train: CocoDataset, val: CocoDataset | None, augment_file: str | None = None) -> dict[str, Any]:
    """Classes, images and boxes of both splits, and the pipeline that training images go through."""
    facts: dict[str, Any] = {"list of classes": [[category.id, category.name] for category in train.categories]}
    for name, split in (("training", train), ("validation", val)):
        facts[f"number of {name} images"] = None if split is None else len(split)
        facts[f"checksum of the {name} images' names, sizes and boxes"] = None if split is None else _checksum(split)
    pipeline = None if augment_file is None else zlib.crc32(read_augment_file(augment_file).encode())
    return {**facts, "checksum of data.augment_file": pipeline}


def weights_facts(variables: Sequence[Any]) -> dict[str, Any]:
    """A checksum of the values from which every worker starts."""
    total = 0
    for variable in variables:
        total = zlib.crc32(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).tobytes(), total)
    return {"checksum of the weights to start from": f"{total:08x}"}


def _checksum(split: CocoDataset) -> str:
    digest = hashlib.sha256("\n".join(Path(path).name for path in split.paths).encode())
    for array in (split.image_ids, split.sizes, split.orientations, split.box_offsets, split.boxes, split.classes):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
