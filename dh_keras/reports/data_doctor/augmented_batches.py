"""Batches as training gets them, drawn after augmentation. TensorFlow is imported when this is called."""

from pathlib import Path

from dh_keras.config.schema import Config
from dh_keras.reports.data_doctor.sheets import draw


def augmented_batches(
    annotations: str | Path, images: str | Path, config: Config, *, batches: int
) -> list[tuple[str, str]]:
    """Draw the first batches of a training.

    Args:
        annotations: COCO JSON of the training split.
        images: folder of its images.
        config: augmentation, sizes, batch size and seed.
        batches: how many.

    Returns:
        (caption, picture as a data address) of every image, without its padding.

    Raises:
        DataError: as `load_coco`.
    """
    from dh_keras.data.balance import epoch_images
    from dh_keras.data.formats.coco import load_coco
    from dh_keras.data.pipeline import plan_batches, steps_per_epoch, train_dataset

    dataset = load_coco(annotations, images)
    shown, batch_size, seed = epoch_images(dataset, config.data), config.data.batch_size, config.train.seed
    epochs = -(-batches // steps_per_epoch(shown.canvas_index, batch_size, shown.repeats))
    order = plan_batches(shown.canvas_index, batch_size=batch_size, epochs=epochs, seed=seed, repeats=shown.repeats)
    plan = shown.indices[order][:batches]
    pictures = []
    for step, batch in enumerate(train_dataset(dataset, config.data, plan=plan, seed=seed)):
        batch = {name: values.numpy() for name, values in batch.items()}
        for position, (height, width) in enumerate(batch["image_sizes"]):
            valid = batch["gt_valid"][position]
            labels = [dataset.class_names[index] for index in batch["gt_classes"][position][valid]]
            pixels = batch["images"][position, :height, :width]
            name = Path(dataset.paths[plan[step, position]]).name
            picture = draw(pixels, batch["gt_boxes"][position][valid], labels, dataset.class_names)
            pictures.append((f"batch {step + 1}: {name}", picture))
    return pictures
