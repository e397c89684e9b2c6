"""Batches for training and images for evaluation, as tf.data datasets.

What is random is decided by a plan of image indices made in NumPy: a table with one row for each step. The same seed
gives the same plan, and a run can go on from any row. Pixels are never held in a shuffle buffer.

Letters: N images, B batch, G padded ground truth.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dh_keras.config.schema import DataConfig
from dh_keras.data import transforms
from dh_keras.data.augment import make_finisher, place, size_limits
from dh_keras.data.canvases import canvas_of, canvases
from dh_keras.data.dataset import CocoDataset
from dh_keras.data.draws import Draws
from dh_keras.data.mosaic import make_mosaic
from dh_keras.errors import DataError, one_line

# A box with a shorter side than this many pixels after resizing is no target: its deltas would be meaningless.
MIN_BOX_SIDE = 1e-3


def training_indices(dataset: CocoDataset, filter_empty: bool) -> np.ndarray:
    """Return int32 indices of the images to train on.

    Args:
        dataset: the training split.
        filter_empty: leave images without a box out.

    Raises:
        DataError: when no image has a box.
    """
    has_boxes = np.diff(dataset.box_offsets) > 0
    if not has_boxes.any():
        raise DataError(
            f"annotations {dataset.annotations_path}: no box to train on in {len(dataset)} images "
            f"({dataset.counts.get('crowd', 0)} crowd, {dataset.counts.get('degenerate', 0)} degenerate); "
            "expected at least one, is this the right file?"
        )
    return np.flatnonzero(has_boxes | (not filter_empty)).astype(np.int32)


def steps_per_epoch(canvas_index: np.ndarray, batch_size: int, repeats: np.ndarray | None = None) -> int:
    """Return the number of batches in which `plan_batches` shows every image at least once."""
    shown = np.bincount(canvas_index, repeats)
    return int(sum(-(-math.ceil(round(count, 6)) // batch_size) for count in shown.tolist()))


def plan_batches(
    canvas_index: np.ndarray, *, batch_size: int, epochs: int, seed: int, repeats: np.ndarray | None = None
) -> np.ndarray:
    """Decide which images make up each step, so that a batch has one canvas and an epoch has every image.

    Epoch e depends on the seed and e only, not on how many epochs are planned. A canvas whose images do not fill
    whole batches repeats some of them, other ones in every epoch.

    Args:
        canvas_index: int[N], canvas of each image, from `canvas_of`.
        batch_size: images per step, over all replicas.
        epochs: number of epochs to plan.
        seed: same seed, same plan.
        repeats: float[N], at least 1: how often each image is shown in an epoch on average. In each epoch it is shown
            that often, rounded down or up. None shows each once.

    Returns:
        int32[epochs * steps_per_epoch, batch_size], positions in canvas_index. For a subset of a dataset,
        `indices[plan_batches(canvas_index[indices], ...)]` has indices into the dataset.
    """
    canvas_index = np.asarray(canvas_index)
    made = [_plan_epoch(canvas_index, batch_size, seed, epoch, repeats) for epoch in range(epochs)]
    return np.concatenate([np.empty((0, batch_size), np.int32), *made])


def _plan_epoch(
    canvas_index: np.ndarray, batch_size: int, seed: int, epoch: int, repeats: np.ndarray | None
) -> np.ndarray:
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(canvas_index)).astype(np.int32)
    batches = []
    for canvas in np.unique(canvas_index):
        group = order[canvas_index[order] == canvas]
        filled = steps_per_epoch(np.zeros_like(group), batch_size, None if repeats is None else repeats[group])
        filled *= batch_size
        if repeats is not None:
            group = random.permutation(np.repeat(group, _round_randomly(repeats[group], random)))
        batches.append(np.resize(group, filled).reshape(-1, batch_size))
    return random.permutation(np.concatenate(batches))


def _round_randomly(repeats: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Round each number down or up, right on average, so that their sum is rounded down or up as well."""
    reached = np.floor(np.round(np.cumsum(repeats), 6) + random.random())
    return np.diff(reached, prepend=0).astype(np.int64)


class Plan(NamedTuple):
    """Which images each step of a run sees: `plan_batches`, an epoch at a time, however many there are.

    Args:
        indices: int32[N], images of the dataset that are trained on.
        canvas_index: int[N], canvas of each.
        repeats: float[N], see `plan_batches`, or None.
        batch_size: images per step, over all replicas.
        seed: same seed, same plan.
        steps: of the run; its last epoch may be shorter.
    """

    indices: np.ndarray
    canvas_index: np.ndarray
    repeats: np.ndarray | None
    batch_size: int
    seed: int
    steps: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a whole epoch."""
        return steps_per_epoch(self.canvas_index, self.batch_size, self.repeats)

    def epoch(self, number: int) -> np.ndarray:
        """Return int32[steps, batch_size], the images of an epoch, which is counted from 0."""
        number = int(number)
        left = self.steps - number * self.steps_per_epoch
        return self.indices[_plan_epoch(self.canvas_index, self.batch_size, self.seed, number, self.repeats)][:left]

    def step(self, number: int) -> np.ndarray:
        """Return int32[batch_size], the images of a step, which is counted from 0."""
        epoch, row = divmod(number, self.steps_per_epoch)
        return self.epoch(epoch)[row]

    def epochs(self) -> Iterator[np.ndarray]:
        """Every epoch in turn."""
        return map(self.epoch, range(-(-self.steps // self.steps_per_epoch)))

    def rows(self, start_step: int) -> tf.data.Dataset:
        """Return a dataset of int32[batch_size], the images of each step from one on."""
        first, skipped = divmod(start_step, self.steps_per_epoch)

        def epoch_rows(number: tf.Tensor) -> tf.data.Dataset:
            rows = tf.numpy_function(self.epoch, [number], tf.int32, stateful=False)
            return tf.data.Dataset.from_tensor_slices(tf.ensure_shape(rows, [None, self.batch_size]))

        numbers = tf.data.Dataset.range(first, -(-self.steps // self.steps_per_epoch))
        return numbers.flat_map(epoch_rows).skip(skipped)


def train_dataset(
    dataset: CocoDataset,
    data_config: DataConfig,
    *,
    plan: np.ndarray | Plan,
    seed: int,
    start_step: int = 0,
    shard: tuple[int, int] = (0, 1),
    parts: int = 1,
) -> tf.data.Dataset:
    """Read, resize, augment and batch the images of a plan.

    Args:
        dataset: the training split.
        data_config: see `place`, `make_finisher` and `make_mosaic`; the batch size is that of the plan.
        plan: int[steps, B], indices into the dataset, or what makes them epoch by epoch.
        seed: of the augmentation; a draw depends on the seed, the step and the position in the batch only.
        start_step: first row of the plan to give; the stream is then the rest of the uninterrupted one.
        shard: (worker, number of workers): give this worker's share of every batch.
        parts: give the share in so many equal batches, one for each of the worker's replicas in turn.

    Returns:
        A finite dataset of dicts: images uint8[B, H, W, 3] padded to a canvas, image_sizes int32[B, 2] (height,
        width) without the padding, gt_boxes float32[B, G, 4] y1 x1 y2 x2 in pixels of the resized image,
        gt_classes int32[B, G], gt_valid bool[B, G], image_ids int64[B]. G is the largest number of boxes in the
        batch, at least 1; rows that are not valid are zero.

    Raises:
        ValueError: if the batch cannot be divided among the workers and their replicas.
    """
    worker, workers = shard
    whole = plan.batch_size if isinstance(plan, Plan) else plan.shape[1]
    batch_size = whole // workers
    if whole % (workers * parts) or not 0 <= worker < workers:
        raise ValueError(
            f"shard: expected (worker, number of workers), in {parts} parts, dividing a batch of {whole}, got {shard}"
        )
    share = slice(worker * batch_size, (worker + 1) * batch_size)
    positions = np.arange(whole)[share]
    if isinstance(plan, Plan):
        rows, indices = plan.rows(start_step), plan.indices
    else:
        indices = np.unique(plan)
        rows = tf.data.Dataset.from_tensor_slices(np.asarray(plan[start_step:], np.int32))
    slots = rows.enumerate(start_step).flat_map(
        lambda step, row: tf.data.Dataset.from_tensor_slices((tf.fill([batch_size], step), positions, row[share]))
    )
    examples = slots.map(
        _example_maker(dataset, data_config, indices, seed), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    # Padding fills gt_boxes to G; all images of a row have one canvas already.
    return _finish(examples.padded_batch(batch_size // parts, drop_remainder=True))


def image_dataset(dataset: CocoDataset, indices: Iterable[int]) -> tf.data.Dataset:
    """Read images for evaluation.

    Args:
        dataset: the images.
        indices: which of them, in the order they are given.

    Returns:
        A dataset of (int32[] index, uint8[h, w, 3] upright image in its original size).
    """
    read = _image_reader(dataset)
    rows = tf.data.Dataset.from_tensor_slices(np.asarray(list(indices), np.int32))
    images = rows.map(lambda index: (index, read(index)), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    # Tuning takes time of the network's cores, and an iterator's end waits for it, a second at times.
    return _finish(images, tuned=False)


def find_bad_image(dataset: CocoDataset, indices: Iterable[int] | None = None) -> str | None:
    """Decode images one by one, exactly as training does, until one fails.

    A failure inside tf.data does not say which file it was; this does.

    Args:
        dataset: images to try.
        indices: which of them, in this order; None tries all.

    Returns:
        One line naming the first file that fails and why, or None.
    """
    read_bytes = dataset.bytes_reader()
    for index in range(len(dataset)) if indices is None else indices:
        path, size = dataset.paths[index], tuple(dataset.sizes[index].tolist())
        try:
            image = transforms.decode_image(read_bytes(index), tf.constant(dataset.orientations[index], tf.int32))
        except (tf.errors.OpError, OSError, UnicodeDecodeError) as error:  # a message may quote bytes of a record
            reason = one_line(getattr(error, "message", error))
            return f"image {path}: cannot be decoded ({reason}); replace it or take it out of the set"
        if tuple(image.shape[:2]) != size:
            got = tuple(image.shape[:2])
            return f"image {path}: expected (height, width) {size} as annotated, got {got}; mend one of the two"
    return None


def _finish(dataset: tf.data.Dataset, *, tuned: bool = True) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = tuned
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)


def _image_reader(dataset: CocoDataset):
    """Return a graph function from an image index to its upright uint8[h, w, 3] pixels."""
    read_bytes = dataset.bytes_reader()
    orientations = tf.constant(dataset.orientations, tf.int32)
    sizes = tf.constant(dataset.sizes, tf.int32)

    def read(index: tf.Tensor) -> tf.Tensor:
        image = transforms.decode_image(read_bytes(index), orientations[index])
        same = tf.debugging.assert_equal(tf.shape(image)[:2], sizes[index], "image size is not the annotated one")
        with tf.control_dependencies([same]):
            return tf.identity(image)

    return read


def _example_maker(dataset: CocoDataset, data_config: DataConfig, indices: np.ndarray, seed: int):
    """Return a graph function from (step, position, image index) to one example of the training batch.

    `indices` are the images that a mosaic may show besides.
    """
    limits, finish = size_limits(data_config), make_finisher(data_config)
    read_image = _image_reader(dataset)
    canvas_table = tf.constant(canvases(**limits), tf.int32)
    canvas_index = tf.constant(canvas_of(dataset.sizes, **limits), tf.int32)
    image_ids = tf.constant(dataset.image_ids, tf.int64)
    offsets = tf.constant(dataset.box_offsets, tf.int64)
    boxes = tf.constant(dataset.boxes, tf.float32)
    classes = tf.constant(dataset.classes, tf.int32)

    def read(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        rows = slice(offsets[index], offsets[index + 1])
        return read_image(index), boxes[rows], classes[rows]

    def make_single(index: tf.Tensor, canvas: tf.Tensor, key: tf.Tensor, draws: Draws):
        image, gt_boxes, gt_classes = read(index)
        return *place(image, gt_boxes, canvas, key, draws, data_config), gt_classes

    def make(step: tf.Tensor, position: tf.Tensor, index: tf.Tensor) -> dict[str, tf.Tensor]:
        canvas = canvas_table[canvas_index[index]]
        key = tf.random.experimental.stateless_fold_in(tf.stack([tf.constant(seed, tf.int64), step]), position)
        draws = Draws(key)
        if data_config.mosaic:
            image, gt_boxes, gt_classes = tf.cond(
                draws.uniform() < data_config.mosaic,
                lambda: make_mosaic(read, index, tf.constant(indices, tf.int32), canvas, draws, data_config),
                lambda: make_single(index, canvas, key, draws),
            )
        else:
            image, gt_boxes, gt_classes = make_single(index, canvas, key, draws)
        image, gt_boxes = finish(image, gt_boxes, canvas, draws)
        gt_boxes, gt_classes, gt_valid = _mark_valid(gt_boxes, gt_classes)
        return {
            "images": transforms.pad_to(image, canvas),
            "image_sizes": tf.shape(image)[:2],
            "gt_boxes": gt_boxes,
            "gt_classes": gt_classes,
            "gt_valid": gt_valid,
            "image_ids": image_ids[index],
        }

    return make


def _mark_valid(boxes: tf.Tensor, classes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Zero the rows of vanished boxes, and give an image without boxes one row that is not valid."""
    valid = tf.reduce_min(boxes[:, 2:] - boxes[:, :2], axis=1) >= MIN_BOX_SIDE
    boxes, classes = tf.where(valid[:, None], boxes, 0.0), tf.where(valid, classes, 0)
    missing = tf.cast(tf.shape(valid)[0] == 0, tf.int32)
    return tf.pad(boxes, [[0, missing], [0, 0]]), tf.pad(classes, [[0, missing]]), tf.pad(valid, [[0, missing]])
