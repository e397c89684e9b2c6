"""The images a run was trained and is measured on, found again from its config."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dh_keras.config.schema import DataConfig
from dh_keras.data.dataset import CocoDataset
from dh_keras.data.formats.coco import load_coco
from dh_keras.data.formats.tfrecord import load_tfrecords
from dh_keras.data.shape_drawing import CATEGORIES
from dh_keras.data.shapes import ShapesPaths, write_shapes
from dh_keras.errors import DataError
from dh_keras.reports.heads.statistics import size_masks
from dh_keras.run.run_folder import RunFolder


@dataclass(frozen=True)
class SplitFacts:
    """What is worth knowing about a split.

    Args:
        source: the annotation file or TFRecord pattern.
        folder: of the images; None for TFRecords.
        images: how many.
        empty_images: how many of them have no box.
        boxes: {class: boxes}, crowds left out.
        sizes: {"small" | "medium" | "large": boxes}.
    """

    source: str
    folder: str | None
    images: int
    empty_images: int
    boxes: dict[str, int]
    sizes: dict[str, int]


def uses_shapes(data: DataConfig) -> bool:
    """Whether a config names no data, which stands for the generated shapes dataset."""
    return data.train_annotations is None and data.train_tfrecords is None


def names_validation(data: DataConfig) -> bool:
    """Whether a config of a training names validation images, or none at all, which stands for the shapes."""
    return data.val_annotations is not None or uses_shapes(data)


def load_validation(run: RunFolder, annotations: str | Path | None, images: str | Path | None) -> CocoDataset:
    """Load the validation images of a run, or others in their place.

    Args:
        run: the opened run.
        annotations: COCO JSON to use instead of the config's, for data that has moved; with `images`.
        images: folder of its images.

    Raises:
        DataError: one line that says which option to give.
    """
    if (annotations is None) != (images is None):
        given, lacking = ("--annotations", "--images") if images is None else ("--images", "--annotations")
        raise DataError(f"{given}: needs {lacking} with it")
    if annotations is None:
        dataset = _load_own_validation(run)
    else:
        dataset = load_coco(annotations, images, categories=run.categories)
    if not len(dataset.boxes):
        raise DataError(f"{dataset.annotations_path}: has no boxes to evaluate on; give a file with annotated objects")
    return dataset


def _load_own_validation(run: RunFolder) -> CocoDataset:
    paths, advice = _own_paths(run), "give --annotations FILE.json --images FOLDER"
    if paths is None:
        raise DataError(f"{run.path}: its config names no data, as those of converted checkpoints; {advice}")
    if paths.val_annotations is None:
        raise DataError(f"{run.path}: was trained without validation images; {advice}")
    try:
        return load_coco(paths.val_annotations, paths.val_images, categories=run.categories)
    except DataError as error:
        raise DataError(f"{error}; if the data has moved, {advice}") from error


def _own_paths(run: RunFolder) -> DataConfig | ShapesPaths | None:
    """The files that a config names, or the generated ones that it stands for; None where these have other classes."""
    data, shapes = run.config.data, run.config.data.shapes
    if not uses_shapes(data):
        return data
    if {category.name for category in run.categories} != set(CATEGORIES.values()):
        return None
    return write_shapes(
        shapes.directory, train_images=shapes.train_images, val_images=shapes.val_images, seed=shapes.seed
    )


def describe_training_data(run: RunFolder) -> SplitFacts | str:
    """Facts of the training split, or a line that says why there are none; images are not opened."""
    data = run.config.data
    try:
        if data.train_tfrecords is not None:
            return describe_split(load_tfrecords(data.train_tfrecords, val_annotations=data.val_annotations))
        paths = _own_paths(run)
        if paths is None:
            return "The config of this run names no data, as those of converted checkpoints."
        return describe_split(load_coco(paths.train_annotations, paths.train_images, check_images=False))
    except DataError as error:
        return f"Not at hand when this was written ({error})."


def describe_split(dataset: CocoDataset) -> SplitFacts:
    """Count images and boxes."""
    per_class = np.bincount(dataset.classes, minlength=dataset.num_classes).tolist()
    areas = dataset.truth.areas[~dataset.truth.crowd]
    sizes = {name: int(mask.sum()) for name, mask in size_masks(areas).items() if name != "all"}
    folder = str(dataset.images_dir) if str(dataset.annotations_path).endswith(".json") else None
    return SplitFacts(
        source=str(dataset.annotations_path),
        folder=folder,
        images=len(dataset),
        empty_images=int(np.sum(np.diff(dataset.box_offsets) == 0)),
        boxes=dict(zip(dataset.class_names, per_class, strict=True)),
        sizes=sizes,
    )
