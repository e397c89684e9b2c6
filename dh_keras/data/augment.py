"""Random changes of one training image and its boxes: scale, crop, flip, a policy of operations, a pipeline in a file.

Everything random is drawn from a key, so an image that is drawn again with the same key comes out the same, in any
order and in any thread. Boxes are y1 x1 y2 x2 in continuous pixel coordinates of the image they come with; what an
operation moves out of the image has no height or no width afterwards.
"""

from collections.abc import Callable

import tensorflow as tf

from dh_keras.config.schema import DataConfig
from dh_keras.data import transforms
from dh_keras.data.augment_file import apply_pipeline, load_pipeline
from dh_keras.data.draws import Draws
from dh_keras.data.policies import autoaugment_v0, randaugment

Finisher = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, Draws], tuple[tf.Tensor, tf.Tensor]]

_POLICIES = {"randaugment": randaugment, "autoaugment_v0": autoaugment_v0}


def size_limits(data: DataConfig) -> dict[str, int]:
    """Return min_size and max_size, in pixels, that every training image keeps to; canvases are made for them."""
    sizes = data.multi_scale_sizes if data.augmentation == "multi_scale" else [data.min_size]
    return {"min_size": max(sizes), "max_size": data.max_size}


def place(
    image: tf.Tensor, boxes: tf.Tensor, canvas: tf.Tensor, key: tf.Tensor, draws: Draws, data: DataConfig
) -> tuple[tf.Tensor, tf.Tensor]:
    """What decides where things are: resize, crop where sizes jitter, flip.

    Args:
        image: uint8[H, W, 3].
        boxes: float32[n, 4].
        canvas: int32[2], (height, width) that the image must fit.
        key: int64[2], of the flip.
        draws: of all else.
        data: min_size, max_size, augmentation, flip_probability, multi_scale_sizes and scale_jitter are used.

    Returns:
        The new image, uint8, no larger than the canvas, and the boxes in its pixels, as many as before.
    """
    image, boxes = random_resize(image, boxes, draws, data)
    if data.scale_jitter is not None:
        image, boxes = random_crop(image, boxes, canvas, draws)
    if data.augmentation != "none":
        image, boxes = random_flip(image, boxes, data.flip_probability, key)
    return image, boxes


def make_finisher(data: DataConfig) -> Finisher:
    """What comes after `place` or a mosaic, and takes and returns the same: the policy, and the pipeline in a file."""
    policy = _POLICIES.get(data.augmentation)
    pipeline = None if data.augment_file is None else load_pipeline(data.augment_file)

    def finish(image: tf.Tensor, boxes: tf.Tensor, canvas: tf.Tensor, draws: Draws) -> tuple[tf.Tensor, tf.Tensor]:
        if policy:
            image, boxes = policy(image, boxes, draws)
        return apply_pipeline(pipeline, image, boxes, canvas, draws) if pipeline else (image, boxes)

    return finish


def random_resize(image: tf.Tensor, boxes: tf.Tensor, draws: Draws, data: DataConfig) -> tuple[tf.Tensor, tf.Tensor]:
    """Resize an image, uint8[H, W, 3], and its boxes to what a config says or lets be drawn."""
    old_size = tf.shape(image)[:2]
    new_size = _draw_size(old_size, data, draws)
    return transforms.resize_image(image, new_size), transforms.resize_boxes(boxes, old_size, new_size)


def _draw_size(size: tf.Tensor, data: DataConfig, draws: Draws) -> tf.Tensor:
    """Return int32[2], (height, width) to resize to, at least 1."""
    min_size: int | tf.Tensor = data.min_size
    if data.augmentation == "multi_scale":
        min_size = tf.constant(data.multi_scale_sizes)[draws.integer(len(data.multi_scale_sizes))]
    new_size = transforms.resized_size(size, min_size=min_size, max_size=data.max_size)
    if data.scale_jitter is None:
        return new_size
    factor = draws.uniform(*data.scale_jitter)
    return tf.maximum(tf.cast(tf.round(tf.cast(new_size, tf.float32) * factor), tf.int32), 1)


def random_crop(image: tf.Tensor, boxes: tf.Tensor, canvas: tf.Tensor, draws: Draws) -> tuple[tf.Tensor, tf.Tensor]:
    """Cut a window out of an image that is larger than the canvas; every place of the window is equally likely.

    Args:
        image: uint8[H, W, 3].
        boxes: float32[n, 4].
        canvas: int32[2], (height, width) of the window; a shorter side of the image is kept whole.
        draws: where the window lies.

    Returns:
        The window and the boxes in its pixels, clipped to it.
    """
    size = tf.shape(image)[:2]
    window = tf.minimum(size, canvas)
    free = size - window
    start = tf.stack([draws.integer(free[0] + 1), draws.integer(free[1] + 1)])
    image = tf.slice(image, tf.pad(start, [[0, 1]]), tf.concat([window, [3]], 0))
    boxes = boxes - tf.tile(tf.cast(start, tf.float32), [2])
    return image, tf.clip_by_value(boxes, 0.0, tf.tile(tf.cast(window, tf.float32), [2]))


def random_flip(image: tf.Tensor, boxes: tf.Tensor, probability: float, key: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mirror an image and its boxes left to right, or not."""
    return tf.cond(
        tf.random.stateless_uniform([], key, alg="philox") < probability,
        lambda: transforms.horizontal_flip(image, boxes),
        lambda: (image, boxes),
    )
