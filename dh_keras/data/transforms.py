"""Decoding, resizing, flipping and padding of one image: the same TensorFlow functions in training and in serving.

Everything here is stock TensorFlow operations on one image, so it runs in a tf.data map, in `tf.map_fn` and inside a
SavedModel. Boxes are y1 x1 y2 x2 in continuous pixel coordinates of the image they come with.
"""

import tensorflow as tf

from dh_keras.data.images import EXIF_MAX_ENTRIES, EXIF_MAX_SEGMENTS, EXIF_WINDOW

IMAGE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


def decode_image(image_bytes: tf.Tensor, orientation: tf.Tensor | None = None) -> tf.Tensor:
    """Decode a JPEG or PNG file and turn it upright.

    Args:
        image_bytes: string[], the file; grey, palette, CMYK and 16-bit images become 8-bit RGB, alpha is dropped.
        orientation: int32[], the EXIF orientation to apply, 1..8; None reads the file's own.

    Returns:
        uint8[H, W, 3], RGB.

    Raises:
        tf.errors.InvalidArgumentError: when run, if the bytes are no JPEG or PNG, or are cut off.
    """
    # The kernel goes by the content, so it takes PNG as well; only this operation has the accurate transform.
    image = tf.io.decode_jpeg(image_bytes, channels=3, dct_method="INTEGER_ACCURATE")
    if orientation is None:
        orientation = exif_orientation(image_bytes)
    upright = tf.cond(
        (orientation > 1) & (orientation <= 8),
        lambda: _turn_upright(image, orientation),
        lambda: image,
    )
    return tf.ensure_shape(upright, [None, None, 3])


def require_images(files: tf.Tensor) -> tf.Tensor:
    """Pass files on that begin like a JPEG or PNG file.

    Args:
        files: string[B].

    Raises:
        tf.errors.InvalidArgumentError: when run, naming the places in the batch of the others, or for an empty batch.
    """
    known = [tf.strings.substr(files, 0, len(magic)) == magic for magic in IMAGE_MAGIC]
    others = tf.where(~tf.reduce_any(known, axis=0))[:, 0]
    message = tf.strings.format("expected JPEG or PNG files; of other kinds or empty: number {} of the batch", others)
    checks = [
        tf.debugging.Assert(tf.size(files) > 0, ["expected at least one JPEG or PNG file, the batch is empty"]),
        tf.debugging.Assert(tf.size(others) == 0, [message]),
    ]
    with tf.control_dependencies(checks):
        return tf.identity(files)


def _turn_upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Apply an EXIF orientation: 5..8 swap the axes, then rows and columns are mirrored as needed."""
    image = tf.transpose(image, tf.where(orientation >= 5, [1, 0, 2], [0, 1, 2]))
    mirrored = tf.stack(
        [
            tf.reduce_any(orientation == [3, 4, 7, 8]),  # rows
            tf.reduce_any(orientation == [2, 3, 6, 7]),  # columns
        ]
    )
    return tf.reverse(image, tf.boolean_mask([0, 1], mirrored))


def exif_orientation(image_bytes: tf.Tensor) -> tf.Tensor:
    """Read the EXIF orientation of a JPEG file in the graph.

    Args:
        image_bytes: string[], the file; only its first 64 KiB are looked at.

    Returns:
        int32[], 1..8; 1 when there is no valid tag or the file is not a JPEG.
    """
    head = tf.io.decode_raw(tf.strings.substr(image_bytes, 0, EXIF_WINDOW), tf.uint8)
    length = tf.size(head, tf.int64)
    head = tf.pad(head, [[0, 12]])  # a read past the end gives zeros, which are no marker and no tag

    def read(place: tf.Tensor, count: int) -> tf.Tensor:
        start = tf.clip_by_value(place, 0, length)
        return tf.cast(tf.gather(head, tf.expand_dims(start, -1) + tf.range(count, dtype=tf.int64)), tf.int64)

    tiff = _find_exif(read, length)
    order = read(tiff, 2)
    little = tf.reduce_all(order == [0x49, 0x49])

    def number(place: tf.Tensor, count: int) -> tf.Tensor:
        digits = read(place, count)
        digits = tf.where(little, digits, tf.reverse(digits, [-1]))
        return tf.reduce_sum(digits * [256**i for i in range(count)], axis=-1)

    valid = (little | tf.reduce_all(order == [0x4D, 0x4D])) & (number(tiff + 2, 2) == 42)
    directory = tiff + number(tiff + 4, 4)
    entries = tf.minimum(number(directory, 2), EXIF_MAX_ENTRIES)
    places = directory + 2 + 12 * tf.range(entries)
    kinds = number(places + 2, 2)
    values = tf.where(kinds == 3, number(places + 8, 2), number(places + 8, 4))
    values = tf.boolean_mask(values, (number(places, 2) == 0x0112) & ((kinds == 3) | (kinds == 4)))
    value = tf.concat([values, [1]], 0)[0]
    return tf.cast(tf.where(valid & (value >= 1) & (value <= 8), value, 1), tf.int32)


def _find_exif(read, length: tf.Tensor) -> tf.Tensor:
    """Walk the JPEG segments to the EXIF one; return where its TIFF header starts, or the end of the bytes."""

    def is_exif(segment: tf.Tensor) -> tf.Tensor:
        return (segment[1] == 0xE1) & tf.reduce_all(segment[4:10] == list(b"Exif\0\0"))

    def goes_on(place: tf.Tensor) -> tf.Tensor:
        segment = read(place, 10)
        last = (segment[1] == 0xDA) | (segment[1] == 0xD9)
        return (segment[0] == 0xFF) & ~last & ~is_exif(segment)

    def advance(place: tf.Tensor) -> list[tf.Tensor]:
        segment = read(place, 4)
        is_fill_byte = segment[1] == 0xFF
        return [place + tf.where(is_fill_byte, tf.constant(1, tf.int64), 2 + 256 * segment[2] + segment[3])]

    is_jpeg = tf.reduce_all(read(tf.constant(0, tf.int64), 2) == [0xFF, 0xD8])
    start = tf.where(is_jpeg, tf.constant(2, tf.int64), length)
    [place] = tf.while_loop(goes_on, advance, [start], maximum_iterations=EXIF_MAX_SEGMENTS)
    segment = read(place, 10)
    return tf.where((segment[0] == 0xFF) & is_exif(segment), place + 10, length)


def resized_size(size: tf.Tensor, *, min_size: int | tf.Tensor, max_size: int) -> tf.Tensor:
    """Scale a size so that the short side becomes min_size, or less where the long side would exceed max_size.

    Args:
        size: int[2], (height, width) in pixels.
        min_size: pixels of the short side, a number or int[].
        max_size: largest pixels of the long side.

    Returns:
        int32[2], (height, width), rounded half up, at least 1. `canvases.resized_sizes` takes the same float64 steps.
    """
    size = tf.cast(size, tf.float64)
    limits = tf.stack([tf.cast(min_size, tf.float64), tf.constant(max_size, tf.float64)])
    # One division of pairs: of a number by a size OpenVINO 2026.4 makes the reciprocal.
    scale = tf.reduce_min(limits / tf.stack([tf.reduce_min(size), tf.reduce_max(size)]))
    return tf.maximum(tf.cast(tf.floor(size * scale + 0.5), tf.int32), 1)


def resize_image(image: tf.Tensor, new_size: tf.Tensor) -> tf.Tensor:
    """Resize bilinearly with half-pixel centres and no antialiasing, as OpenCV's INTER_LINEAR does.

    Args:
        image: uint8[H, W, 3].
        new_size: int32[2], (height, width) in pixels.

    Returns:
        uint8[new_size[0], new_size[1], 3], rounded.
    """
    resized = tf.image.resize(image, new_size, method="bilinear", antialias=False)
    return tf.saturate_cast(tf.round(resized), tf.uint8)


def resize_boxes(boxes: tf.Tensor, old_size: tf.Tensor, new_size: tf.Tensor) -> tf.Tensor:
    """Scale boxes by what each side really became, rounding included; float32 must not push one over the border.

    Args:
        boxes: float32[n, 4].
        old_size: int32[2], (height, width).
        new_size: int32[2], (height, width).
    """
    limit = tf.tile(tf.cast(new_size, tf.float32), [2])
    return tf.minimum(boxes * limit / tf.tile(tf.cast(old_size, tf.float32), [2]), limit)


def horizontal_flip(image: tf.Tensor, boxes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mirror an image and its boxes left to right.

    Args:
        image: [H, W, C].
        boxes: float32[n, 4], y1 x1 y2 x2 in pixels of the image, continuous coordinates.

    Returns:
        The mirrored image and boxes; x becomes W - x.
    """
    width = tf.cast(tf.shape(image)[1], boxes.dtype)
    y1, x1, y2, x2 = tf.unstack(boxes, num=4, axis=-1)
    return tf.reverse(image, [1]), tf.stack([y1, width - x2, y2, width - x1], axis=-1)


def pad_to(image: tf.Tensor, canvas: tf.Tensor) -> tf.Tensor:
    """Pad with zeros at the bottom and the right.

    Args:
        image: [h, w, C].
        canvas: int32[2], (height, width), at least those of the image.

    Returns:
        [canvas[0], canvas[1], C], same dtype.
    """
    missing = canvas - tf.shape(image)[:2]
    return tf.pad(image, [[0, missing[0]], [0, missing[1]], [0, 0]])
