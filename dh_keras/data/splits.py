"""The training and validation images that a config names."""

from dh_keras.config.schema import DataConfig
from dh_keras.data.dataset import CocoDataset
from dh_keras.data.formats.coco import load_coco
from dh_keras.data.formats.tfrecord import load_tfrecords
from dh_keras.data.shapes import write_shapes


def load_splits(data: DataConfig) -> tuple[CocoDataset, CocoDataset | None]:
    """Read both splits; where the config names no training images, generate the shapes dataset.

    Args:
        data: the paths, and the settings of the shapes.

    Returns:
        The training split, from COCO JSON and folder or from TFRecord files, and the validation split with the same
        categories, or None.

    Raises:
        DataError: one line naming the file and what to do.
    """
    if data.train_tfrecords is not None:
        train = load_tfrecords(data.train_tfrecords, val_annotations=data.val_annotations)
    elif data.train_annotations is not None:
        train = load_coco(data.train_annotations, data.train_images)
    else:
        shapes = data.shapes
        written = write_shapes(
            shapes.directory, train_images=shapes.train_images, val_images=shapes.val_images, seed=shapes.seed
        )
        print(f"data: no annotations given, using the generated shapes dataset in {shapes.directory}")
        train = load_coco(written.train_annotations, written.train_images)
        return train, load_coco(written.val_annotations, written.val_images, categories=train.categories)
    if data.val_annotations is None:
        return train, None
    return train, load_coco(data.val_annotations, data.val_images, categories=train.categories)
