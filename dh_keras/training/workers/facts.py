"""What must be the same for all workers of a training, by the names that a message calls it by."""

import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from omegaconf import OmegaConf

import dh_keras
from dh_keras.config.schema import Config
from dh_keras.data.dataset import CocoDataset

# Where the same files are may differ from machine to machine; what is in them is compared by `data_facts`.
_PATHS = ("train_annotations", "train_images", "train_tfrecords", "val_annotations", "val_images", "shapes.directory")


def program_facts(config: Config, *, addresses: Sequence[str], resume: bool) -> dict[str, Any]:
    """Package versions, devices, and the config without its paths."""
    return {
        "dh_keras version": dh_keras.__version__,
        "TensorFlow version": tf.__version__,
        "Keras version": keras.__version__,
        "the list of workers in TF_CONFIG": list(addresses),
        "number of GPUs": len(tf.config.list_physical_devices("GPU")),
        "--resume": resume,
        **_flat(config),
    }


def data_facts(train: CocoDataset, val: CocoDataset | None) -> dict[str, Any]:
    """Classes, images and boxes of both splits."""
    facts: dict[str, Any] = {"list of classes": [[category.id, category.name] for category in train.categories]}
    for name, split in (("training", train), ("validation", val)):
        facts[f"number of {name} images"] = None if split is None else len(split)
        facts[f"checksum of the {name} images' names, sizes and boxes"] = None if split is None else _checksum(split)
    return facts


def weights_facts(variables: Sequence[Any]) -> dict[str, Any]:
    """A checksum of the values from which every worker starts."""
    total = 0
    for variable in variables:
        total = zlib.crc32(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).tobytes(), total)
    return {"checksum of the weights to start from": f"{total:08x}"}


def _flat(config: Config) -> dict[str, Any]:
    """Config values by dotted key."""
    flat: dict[str, Any] = {}

    def add(node: Any, prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                add(value, f"{prefix}{key}.")
            else:
                flat[f"{prefix}{key}"] = value

    add(OmegaConf.to_container(OmegaConf.structured(config)), "")
    return {key: value for key, value in flat.items() if key.removeprefix("data.") not in _PATHS}


def _checksum(split: CocoDataset) -> str:
    digest = hashlib.sha256("\n".join(Path(path).name for path in split.paths).encode())
    for array in (split.image_ids, split.sizes, split.orientations, split.box_offsets, split.boxes, split.classes):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
