"""One training run, from a config to a run folder."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from dh_keras.builder import build_detector
from dh_keras.config import Config
from dh_keras.data.balance import epoch_images
from dh_keras.data.coco import find_bad_image
from dh_keras.data.dataset import CocoDataset
from dh_keras.data.pipeline import image_dataset, plan_batches, steps_per_epoch, train_dataset
from dh_keras.data.splits import load_splits
from dh_keras.detector import Detector
from dh_keras.errors import DataError, TrainingError
from dh_keras.evaluation import check_ground_truth, evaluate_detections, format_table
from dh_keras.hub import resolve_backbone
from dh_keras.model import NON_FINITE, DoubleHeadRCNN
from dh_keras.run_folder import PICTURES_DIR, STATE_FILE, RunFolder, create_run, open_run
from dh_keras.training.callbacks import ProgressBar, RunRecorder
from dh_keras.training.optimizer import RecipeSGD
from dh_keras.training.schedule import Length, make_schedule, training_length
from dh_keras.training.state import load_state
from dh_keras.training.strategy import is_chief, make_strategy, worker_shard
from dh_keras.visualize import class_colors, draw_boxes, draw_detections, side_by_side
from dh_keras.weights import initialize_weights, load_weights

# Detections in the run folder's pictures score more than this.
PICTURE_SCORE = 0.5


class TrainingData(NamedTuple):
    """The images of a run.

    Args:
        train: to learn from.
        val: to evaluate on, or None.
        plan: int32 [steps, batch], image indices of every step.
        length: steps and epochs.
    """

    train: CocoDataset
    val: CocoDataset | None
    plan: np.ndarray
    length: Length


def train(
    config: Config, *, output: str | Path, strategy: str = "none", resume: bool = False, init: str | Path | None = None
) -> RunFolder:
    """Train a detector.

    Args:
        config: validated; paths to data may be null for the generated shapes dataset.
        output: the run folder; must be new or empty, unless resume.
        strategy: see `make_strategy`.
        resume: go on from the run folder's state, with its own config and classes.
        init: run folder or weights file to start from.

    Returns:
        The run folder, with weights, metrics and pictures in it.

    Raises:
        DataError, ConfigError, TrainingError: one line that says what to change.
    """
    if resume:
        config = open_run(output).config
    config.model.backbone = resolve_backbone(config.model.backbone)
    distribution = make_strategy(strategy)
    data = load_training_data(config)
    with distribution.scope():
        model = _build(config, data, distribution, pretrained=not resume and init is None)
        if init is not None and not resume:
            _report_init(initialize_weights(model, init, data.train.categories), init)
    chief = is_chief(distribution)
    progress = {"epoch": 0, "best_ap": None}
    if resume:
        run = open_run(output)
        progress = load_state(model, run.path / STATE_FILE)
        done = f"{progress['epoch']} of {data.length.epochs} epochs"
        print(f"resumed {run.path}: {done} done, best AP {progress['best_ap']}")
    elif chief:
        run = create_run(output, config, data.train.categories)
    else:
        run = RunFolder(Path(output), config, data.train.categories)
    _fit(model, config, data, run, distribution, progress)
    if chief:
        _finish(model, data, run)
    return run


def load_training_data(config: Config) -> TrainingData:
    """Read both splits, generating the shapes dataset when the config names none, and plan every step."""
    train_split, val_split = load_splits(config.data)
    for name, split in (("training", train_split), ("validation", val_split)):
        if split is not None:
            print(f"{name} data: {split.summary()}")
    if val_split is not None:
        check_ground_truth(val_split)
    return TrainingData(train_split, val_split, *_plan(config, train_split))


def _plan(config: Config, dataset: CocoDataset) -> tuple[np.ndarray, Length]:
    images, batch_size, seed = epoch_images(dataset, config.data), config.data.batch_size, config.train.seed
    length = training_length(config.train, steps_per_epoch(images.canvas_index, batch_size, images.repeats))
    plan = plan_batches(
        images.canvas_index, batch_size=batch_size, epochs=length.epochs, seed=seed, repeats=images.repeats
    )
    return images.indices[plan][: length.steps], length


def _build(
    config: Config, data: TrainingData, distribution: tf.distribute.Strategy, *, pretrained: bool
) -> DoubleHeadRCNN:
    batch_size, settings = config.data.batch_size, config.train
    replicas = distribution.num_replicas_in_sync
    if batch_size % replicas:
        raise TrainingError(f"data.batch_size: expected a multiple of the {replicas} replicas, got {batch_size}")
    schedule = make_schedule(settings, batch_size=batch_size, steps_per_epoch=data.length.steps_per_epoch)
    print(
        f"schedule: {data.length.steps} steps ({data.length.epochs} epochs of {data.length.steps_per_epoch}), lr "
        f"{settings.lr:g} for a batch of {settings.base_batch_size} -> {schedule.lr:g} for a batch of {batch_size}, "
        f"warm-up {settings.warmup_steps} steps, drops after steps {schedule.drops}"
    )
    model = build_detector(
        config.model,
        num_classes=data.train.num_classes,
        seed=settings.seed,
        pretrained=pretrained,
        precision=settings.precision,
        recompute_heads=settings.recompute,
    )
    optimizer = RecipeSGD(schedule, momentum=settings.momentum, l2=settings.l2, clip_norm=settings.clip_norm or None)
    model.compile(optimizer=optimizer, jit_compile=False)
    model.optimizer.build(model.trainable_variables)  # mixed_float16 wraps it
    print(f"model: {config.model.variant}, {model.count_params():,} parameters, {data.train.num_classes} classes")
    return model


def _report_init(skipped: Sequence[str], init: str | Path) -> None:
    print(f"initial weights: {init}, {len(skipped)} predictor arrays skipped")
    for line in skipped:
        print(f"  skipped {line}")


def _fit(
    model: DoubleHeadRCNN,
    config: Config,
    data: TrainingData,
    run: RunFolder,
    distribution: tf.distribute.Strategy,
    progress: dict,
) -> None:
    chief, shard = is_chief(distribution), worker_shard(distribution)
    bar = ProgressBar(batch_size=config.data.batch_size, epochs=data.length.epochs, show=chief)
    callbacks: list = [bar]
    if chief:
        callbacks.append(
            RunRecorder(
                run=run,
                progress_bar=bar,
                evaluate=_evaluator(model, config, data),
                evaluate_every=config.train.evaluate_every,
                epochs=data.length.epochs,
                best_ap=progress["best_ap"],
            )
        )
    for first, last, steps in _stretches(progress["epoch"], data.length):
        start = first * data.length.steps_per_epoch

        def make_dataset(context: tf.distribute.InputContext | None = None, start: int = start) -> tf.data.Dataset:
            return train_dataset(
                data.train, config.data, plan=data.plan, seed=config.train.seed, start_step=start, shard=shard
            )

        batches = make_dataset()
        if shard[1] > 1:
            batches = distribution.distribute_datasets_from_function(make_dataset)
        try:
            model.fit(
                batches,
                epochs=last,
                initial_epoch=first,
                steps_per_epoch=steps,
                callbacks=callbacks,
                shuffle=False,  # the plan is shuffled
                verbose=0,
            )
        except (tf.errors.InvalidArgumentError, tf.errors.DataLossError) as error:
            raise _explain(error, data) from error


def _stretches(first_epoch: int, length: Length) -> list[tuple[int, int, int]]:
    """(first epoch, last epoch, steps per epoch) of the whole epochs, then of a shorter last one, if there is one."""
    whole, rest = divmod(length.steps, length.steps_per_epoch)
    stretches = [(first_epoch, whole, length.steps_per_epoch), (max(first_epoch, whole), length.epochs, rest)]
    return [(first, last, steps) for first, last, steps in stretches if first < last and steps]


def _explain(error: tf.errors.OpError, data: TrainingData) -> Exception:
    """Turn what TensorFlow reports about a step into one line: a non-finite loss, or the image it could not read."""
    non_finite = re.search(rf"{NON_FINITE} .*?image ids \[[\d ]*\]", str(error.message))
    if non_finite:
        advice = "lower train.lr, lengthen train.warmup_steps or check the boxes of these images"
        return TrainingError(f"{non_finite.group()}; {advice}")
    bad = find_bad_image(data.train, np.unique(data.plan))
    return DataError(bad) if bad else error


def _evaluator(model: DoubleHeadRCNN, config: Config, data: TrainingData):
    if data.val is None:
        return None
    detector = Detector.from_model(
        model, data.train.categories, min_size=config.data.min_size, max_size=config.data.max_size
    )

    def evaluate() -> dict:
        detections = detector.detect_dataset(data.val, batch_size=config.data.batch_size)["detections"]
        return evaluate_detections(data.val, detections, max_detections=config.model.max_detections)

    return evaluate


def _finish(model: DoubleHeadRCNN, data: TrainingData, run: RunFolder) -> None:
    """The last words: the table of the best weights, the pictures, where everything is, what to type next."""
    load_weights(model, run.weights)
    config = run.config
    if data.val is not None:
        print(f"\n{run.weights.name} on {data.val.annotations_path}:")
        print(format_table(_evaluator(model, config, data)()))
    detector = Detector.from_model(model, run.categories, min_size=config.data.min_size, max_size=config.data.max_size)
    pictured = data.val if data.val is not None else data.train
    folder = write_pictures(detector, pictured, run.path / PICTURES_DIR, count=config.train.pictures)
    print(f"\nwritten: {run.path} (weights {run.weights.name}, metrics.csv, tensorboard/; pictures in {folder})")
    photographs = "PHOTO.jpg" if config.data.train_tfrecords and data.val is None else Path(pictured.paths[0]).parent
    print(f"next: python scripts/predict.py {run.path} {photographs} --output predictions")


def write_pictures(detector: Detector, dataset: CocoDataset, folder: Path, *, count: int) -> Path:
    """Draw detections beside the ground truth for `count` images spread over the dataset, as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    colors = class_colors(dataset.num_classes)
    names = dataset.class_names
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int))
    for index, image in image_dataset(dataset, chosen).as_numpy_iterator():
        result = detector(image)
        classes = detector.class_indices(result)
        drawn = draw_detections(image, result.boxes, result.scores, classes, names, PICTURE_SCORE)
        truth = dataset.classes_of(index)
        expected = draw_boxes(
            image, dataset.boxes_of(index), [names[c] for c in truth], colors=[colors[c] for c in truth]
        )
        titles = (f"detections above {PICTURE_SCORE}", "ground truth")
        Image.fromarray(side_by_side(drawn, expected, titles)).save(folder / f"{Path(dataset.paths[index]).stem}.png")
    return folder
