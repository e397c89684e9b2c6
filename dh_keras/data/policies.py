"""RandAugment and AutoAugment for detection, with the Model Garden's operations on colours and its tables.

The operations that move pixels are written here: those of the Model Garden (`official.vision.ops.augment`) draw from
global generators, truncate boxes to whole pixels, mirror the picture into the gaps, and give an object that left the
image a box at the border. Here the draws come from a key, boxes are exact, gaps are grey, and a box that left the
image is empty.
"""

import functools
import math
from collections.abc import Callable

import tensorflow as tf

from dh_keras.data.draws import Draws

GREY = 128
MAX_LEVEL = 10.0
Pair = tuple[tf.Tensor, tf.Tensor]
Operation = Callable[[tf.Tensor, tf.Tensor, Draws], Pair]

# RandAugment as the Model Garden builds it for detection.
_RAND_LAYERS = 2
_RAND_CONSTANTS = {"cutout_const": 40.0, "translate_const": 100.0}
_AUTO_CONSTANTS = {"cutout_const": 100.0, "translate_const": 250.0}
# AutoAugment for detection moves the inside of a box with a third of the probability in the table.
_ONLY_BOXES_SHARE = 1 / 3
_ONLY_BOXES_CONSTANT = 120.0


def randaugment(image: tf.Tensor, boxes: tf.Tensor, draws: Draws) -> Pair:
    """Apply two operations at full strength, each one of RandAugment's sixteen or none, all equally likely.

    Args:
        image: uint8[H, W, 3].
        boxes: float32[n, 4], y1 x1 y2 x2 in pixels.
        draws: of the operations, their directions and places.

    Returns:
        The image, of the same size, and the boxes, as many as before, clipped to it.

    Reference: Cubuk et al., RandAugment, section 3; the Model Garden's `RandAugment.build_for_detection`.
    """
    from official.vision.ops import augment

    names = augment.RandAugment.build_for_detection().available_ops
    for _ in range(_RAND_LAYERS):
        operations = [make_operation(name, MAX_LEVEL, **_RAND_CONSTANTS) for name in names]
        branches = [functools.partial(operation, image, boxes, draws) for operation in operations]
        chosen = draws.integer(len(branches) + 1)
        image, boxes = tf.switch_case(chosen, [*branches, lambda pair=(image, boxes): pair])
        image, boxes = tf.ensure_shape(image, [None, None, 3]), tf.ensure_shape(boxes, [None, 4])
    return image, boxes


def autoaugment_v0(image: tf.Tensor, boxes: tf.Tensor, draws: Draws) -> Pair:
    """Apply one of the five sub-policies of AutoAugment's v0 for detection, all equally likely.

    Args and returns as `randaugment`.

    Reference: Zoph et al., Learning Data Augmentation Strategies for Object Detection, appendix;
    the Model Garden's `AutoAugment.detection_policy_v0`.
    """
    from official.vision.ops import augment

    def apply(policy: list[tuple[str, float, float]]) -> Pair:
        pair = (image, boxes)
        for name, probability, level in policy:
            operation = make_operation(name, level, probability=probability, **_AUTO_CONSTANTS)
            changed = functools.partial(operation, *pair, draws)
            always = name == "TranslateY_Only_BBoxes"  # draws for each box itself
            pair = changed() if always else tf.cond(draws.uniform() < probability, changed, lambda pair=pair: pair)
        return pair

    policies = augment.AutoAugment.detection_policy_v0()
    branches = [functools.partial(apply, policy) for policy in policies]
    image, boxes = tf.switch_case(draws.integer(len(branches)), branches)
    return tf.ensure_shape(image, [None, None, 3]), tf.ensure_shape(boxes, [None, 4])


def make_operation(
    name: str, level: float, *, cutout_const: float, translate_const: float, probability: float = 1.0
) -> Operation:
    """Return an operation by the Model Garden's name for it.

    Args:
        name: such as "Rotate_BBox" or "Equalize".
        level: strength, 0 to 10.
        cutout_const: half the side of the cut-out square at level 10, pixels.
        translate_const: pixels of a translation at level 10.
        probability: of an operation that is drawn for each box; others ignore it.
    """
    share = level / MAX_LEVEL
    if name == "TranslateY_Only_BBoxes":
        chance, pixels = probability * _ONLY_BOXES_SHARE, share * _ONLY_BOXES_CONSTANT
        return functools.partial(_translate_inside_boxes, chance=chance, pixels=round(pixels))
    if name == "Cutout":
        return functools.partial(_cut_out, half_side=int(share * cutout_const))
    if name in _MATRICES:
        make_matrix, strength = _MATRICES[name]
        strength = translate_const if strength is None else strength
        return lambda image, boxes, draws: warp(image, boxes, make_matrix(draws.sign() * share * strength, image))
    return functools.partial(_recolor, name=name, level=level)


def _recolor(image: tf.Tensor, boxes: tf.Tensor, draws: Draws, *, name: str, level: float) -> Pair:
    """Apply an operation that draws nothing and moves nothing."""
    from official.vision.ops import augment

    arguments = augment.level_to_arg(cutout_const=0.0, translate_const=0.0)[name](level)
    return augment.NAME_TO_FUNC[name](image, *arguments), boxes


# Operations that move pixels. A matrix maps output points (x, y, 1) to input points, continuous coordinates.


def _rotation(degrees: tf.Tensor, image: tf.Tensor) -> list[list]:
    """Turn about the middle of the image; positive angles turn what is seen anti-clockwise."""
    height, width = (tf.cast(side, tf.float32) for side in tf.unstack(tf.shape(image)[:2], num=2))
    radians = degrees * (math.pi / 180)
    cosine, sine = tf.cos(radians), tf.sin(radians)
    x, y = width / 2, height / 2
    return [[cosine, -sine, x - cosine * x + sine * y], [sine, cosine, y - sine * x - cosine * y]]


def _translation_x(pixels: tf.Tensor, image: tf.Tensor) -> list[list]:
    return [[1.0, 0.0, tf.round(pixels)], [0.0, 1.0, 0.0]]


def _translation_y(pixels: tf.Tensor, image: tf.Tensor) -> list[list]:
    return [[1.0, 0.0, 0.0], [0.0, 1.0, tf.round(pixels)]]


def _shear_x(slope: tf.Tensor, image: tf.Tensor) -> list[list]:
    return [[1.0, slope, 0.0], [0.0, 1.0, 0.0]]


def _shear_y(slope: tf.Tensor, image: tf.Tensor) -> list[list]:
    return [[1.0, 0.0, 0.0], [slope, 1.0, 0.0]]


# Name -> (matrix, strength at level 10); None is the policy's translate_const.
_MATRICES = {
    "Rotate_BBox": (_rotation, 30.0),
    "ShearX_BBox": (_shear_x, 0.3),
    "ShearY_BBox": (_shear_y, 0.3),
    "TranslateX_BBox": (_translation_x, None),
    "TranslateY_BBox": (_translation_y, None),
}


def warp(image: tf.Tensor, boxes: tf.Tensor, matrix: list[list]) -> Pair:
    """Move the pixels of an image, and enclose what was in each box, clipped to the image.

    Args:
        image: uint8[H, W, 3]; gaps become grey, and every pixel takes the nearest one's value.
        boxes: float32[n, 4], y1 x1 y2 x2 in pixels.
        matrix: two rows of three numbers, from output points (x, y, 1) to input points in continuous coordinates.

    Returns:
        The image, of the same size, and float32[n, 4].
    """
    from official.vision.ops import augment

    (a, b, c), (d, e, f) = (tf.unstack(tf.cast(tf.stack(row), tf.float32), num=3) for row in matrix)
    # The kernel counts from the middle of the first pixel.
    kernel = [a, b, c + 0.5 * (a + b - 1), d, e, f + 0.5 * (d + e - 1), 0.0, 0.0]
    moved = augment.transform(image, tf.stack(kernel), fill_mode="constant", fill_value=float(GREY))
    y1, x1, y2, x2 = tf.unstack(boxes, num=4, axis=-1)
    x = tf.stack([x1, x2, x1, x2], axis=-1) - c
    y = tf.stack([y1, y1, y2, y2], axis=-1) - f
    scale = 1 / (a * e - b * d)
    x, y = (e * x - b * y) * scale, (a * y - d * x) * scale
    corners = [tf.reduce_min(y, -1), tf.reduce_min(x, -1), tf.reduce_max(y, -1), tf.reduce_max(x, -1)]
    limit = tf.tile(tf.cast(tf.shape(image)[:2], tf.float32), [2])
    boxes = tf.clip_by_value(tf.stack(corners, axis=-1), 0.0, limit)
    return tf.ensure_shape(moved, [None, None, 3]), boxes


def _cut_out(image: tf.Tensor, boxes: tf.Tensor, draws: Draws, *, half_side: int) -> Pair:
    """Paint a square grey whose middle is a pixel of the image."""
    size = tf.shape(image)[:2]
    row, column = draws.integer(size[0]), draws.integer(size[1])
    rows = tf.abs(tf.range(size[0]) - row) < half_side
    columns = tf.abs(tf.range(size[1]) - column) < half_side
    return tf.where((rows[:, None] & columns)[..., None], tf.constant(GREY, tf.uint8), image), boxes


def _translate_inside_boxes(image: tf.Tensor, boxes: tf.Tensor, draws: Draws, *, chance: float, pixels: int) -> Pair:
    """Shift the inside of some boxes up or down, all by as much; what a box uncovers becomes grey."""
    shift = tf.cast(draws.sign(), tf.int32) * pixels
    chosen = tf.random.stateless_uniform(tf.shape(boxes)[:1], draws.key(), alg="philox") < chance
    rows = tf.cast(tf.boolean_mask(boxes, chosen), tf.int32)
    _, image = tf.while_loop(
        lambda index, _: index < tf.shape(rows)[0],
        lambda index, image: (index + 1, shift_inside(image, rows[index], shift)),
        [tf.constant(0), image],
        shape_invariants=[tf.TensorShape([]), tf.TensorShape([None, None, 3])],
    )
    return image, boxes


def shift_inside(image: tf.Tensor, box: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    """Shift the pixels inside a box down by `shift` pixels (up, if negative); gaps become grey.

    Args:
        image: uint8[H, W, 3].
        box: int32[4], y1 x1 y2 x2 within the image.
        shift: int32[].
    """
    y1, x1, y2, x2 = tf.unstack(box, num=4)
    height = y2 - y1
    down, up = tf.minimum(tf.maximum(shift, 0), height), tf.minimum(tf.maximum(-shift, 0), height)
    inside = tf.pad(
        image[y1 + up : y2 - down, x1:x2], [[down, up], [0, 0], [0, 0]], constant_values=tf.constant(GREY, tf.uint8)
    )
    middle = tf.concat([image[y1:y2, :x1], inside, image[y1:y2, x2:]], axis=1)
    return tf.ensure_shape(tf.concat([image[:y1], middle, image[y2:]], axis=0), [None, None, 3])
