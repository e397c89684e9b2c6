"""The images of a run, and which of them every step sees."""

from typing import NamedTuple

import numpy as np

from dh_keras.config.schema import Config
from dh_keras.data.augment_file import load_pipeline
from dh_keras.data.balance import epoch_images
from dh_keras.data.dataset import CocoDataset
from dh_keras.data.pipeline import Plan, steps_per_epoch
from dh_keras.data.splits import load_splits
from dh_keras.evaluation.coco_metrics import check_ground_truth
from dh_keras.training.schedule import Length, training_length


class TrainingData(NamedTuple):
    """The images of a run.

    Args:
        train: to learn from.
        val: to evaluate on, or None.
        plan: the images of every step.
        length: steps and epochs.
    """

    train: CocoDataset
    val: CocoDataset | None
    plan: Plan
    length: Length


def load_training_data(config: Config) -> TrainingData:
    """Read both splits, generating the shapes dataset when the config names none, and plan every step."""
    if config.data.augment_file is not None:
        load_pipeline(config.data.augment_file)  # what is wrong with it is said at once
    train_split, val_split = load_splits(config.data)
    for name, split in (("training", train_split), ("validation", val_split)):
        if split is not None:
            print(f"{name} data: {split.summary()}")
            _warn_of_many_boxes(name, split, config.model.max_detections)
    if val_split is not None:
        check_ground_truth(val_split)
    images, batch_size, seed = epoch_images(train_split, config.data), config.images_per_step, config.train.seed
    length = training_length(config.train, steps_per_epoch(images.canvas_index, batch_size, images.repeats))
    plan = Plan(*images, batch_size=batch_size, seed=seed, steps=length.steps)
    return TrainingData(train_split, val_split, plan, length)


def _warn_of_many_boxes(name: str, split: CocoDataset, max_detections: int) -> None:
    boxes = np.diff(split.box_offsets)
    if (boxes > max_detections).any():
        print(
            f"warning: {np.sum(boxes > max_detections)} {name} image(s) have more boxes than model.max_detections, "
            f"which is {max_detections}; no more are found, so AP stays low: raise it up to {boxes.max()}"
        )
