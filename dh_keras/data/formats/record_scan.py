"""One look through TFRecord files: where records start, and what the Model Garden's decoder finds in each.

Images are not decoded: only the sizes in their headers are read.
"""

import functools
import struct

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from dh_keras.data import transforms
from dh_keras.data.images import choose_frame
from dh_keras.errors import DataError, one_line
from dh_keras.paths import is_remote, open_binary, to_path

# A record is its length (8 bytes), a checksum of the length (4), the data, and a checksum of the data (4).
_FRAME = 16
_BAR_FROM = 1000
# Bytes that are fetched at once from another file system, where most records are smaller.
_FETCH = 262144


def scan_offsets(file: str) -> np.ndarray:
    """Return int64[records], the bytes before every record, from the lengths alone.

    Args:
        file: an uncompressed TFRecord file.

    Raises:
        DataError: when the lengths do not fit the file: it is cut off, compressed, or of another kind.
    """
    size, offset, offsets = to_path(file).stat().st_size, 0, []
    with open_binary(file, block_size=_FETCH) as stream:
        while offset < size:
            stream.seek(offset)
            head = stream.read(8)
            end = offset + _FRAME + (struct.unpack("<Q", head)[0] if len(head) == 8 else size)
            if end > size:
                raise DataError(
                    f"TFRecord file {file}: cut off in record {len(offsets) + 1}, or not an uncompressed TFRecord "
                    "file; write it again"
                )
            offsets.append(offset)
            offset = end
    return np.array(offsets, np.int64)


def read_record(file: str, offset: int) -> bytes:
    """Read the data of one record of another file system, whose checksums are not looked at."""
    path, start, end = to_path(file), int(offset), int(offset) + _FETCH
    data = path.fs.cat_file(path.path, start=start, end=end)
    last = start + 12 + struct.unpack_from("<Q", data)[0]
    if last > end:
        data += path.fs.cat_file(path.path, start=end, end=last)
    return data[12 : last - start]


def _records(file: str, offsets: np.ndarray) -> tf.data.Dataset:
    """All records of a file."""
    if not is_remote(file):
        return tf.data.TFRecordDataset(file)
    read = functools.partial(read_record, file)
    return tf.data.Dataset.from_tensor_slices(offsets).map(
        lambda offset: tf.ensure_shape(tf.numpy_function(read, [offset], tf.string), []),
        num_parallel_calls=tf.data.AUTOTUNE,
    )


def scan_records(files: list[str], offsets: list[np.ndarray]) -> dict[str, list]:
    """Parse every record with the Model Garden's decoder.

    Args:
        files: TFRecord files.
        offsets: int64[records] of each, see `scan_offsets`.

    Returns:
        Lists with one item per record: source_id str; size (height, width) of the upright image; orientation, the
        EXIF orientation that makes it upright; boxes float32[n, 4], y1 x1 y2 x2 from 0 to 1; labels int64[n];
        is_crowd bool[n]; area float32[n], pixels.

    Raises:
        DataError: naming the file and the number of the first bad record.
    """
    read = _record_parser()
    rows: dict[str, list] = {}
    total = sum(map(len, offsets))
    with tqdm(total=total, desc="reading records", unit="record", disable=total < _BAR_FROM) as bar:
        for file, places in zip(files, offsets, strict=True):
            records = _records(file, places).map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            iterator = records.as_numpy_iterator()
            for number in range(1, len(places) + 1):
                for name, value in _next_row(iterator, f"record {number} of {file}").items():
                    rows.setdefault(name, []).append(value)
                bar.update()
    return rows


def _next_row(iterator, record: str) -> dict:
    try:
        row = next(iterator)
    except (tf.errors.OpError, UnicodeDecodeError) as error:  # TensorFlow's message may quote bytes of the record
        raise DataError(
            f"{record}: cannot be read ({one_line(error)}); expected the Model Garden's detection schema"
        ) from error
    stored, declared = tuple(row.pop("stored_size").tolist()), tuple(row.pop("declared_size").tolist())
    if min(stored) < 1:
        raise DataError(f"{record}: image/encoded is neither JPEG nor PNG; write the file from such images")
    frame = choose_frame(stored, int(row["orientation"]), declared)
    if frame is None:
        raise DataError(
            f"{record}: the image is {stored[1]}x{stored[0]} but image/width and image/height say "
            f"{declared[1]}x{declared[0]}; write the file again"
        )
    if len({len(row[name]) for name in ("boxes", "labels", "is_crowd", "area")}) > 1:
        raise DataError(f"{record}: its boxes, labels, is_crowd and area are not equally many; write the file again")
    size, orientation = frame
    return row | {"size": size, "orientation": orientation, "source_id": row["source_id"].decode(errors="replace")}


def _record_parser():
    """Return a graph function from a serialised record to what `_next_row` takes."""
    from official.vision.dataloaders.tf_example_decoder import TfExampleDecoder

    class HeaderDecoder(TfExampleDecoder):
        """Reads the size of the image in the place of its pixels."""

        def _decode_image(self, parsed_tensors: dict[str, tf.Tensor]) -> tf.Tensor:
            size = stored_size(parsed_tensors["image/encoded"])
            return tf.zeros(tf.concat([size, [0]], 0), tf.uint8)  # this much of an image takes no memory

    decoder = HeaderDecoder(regenerate_source_id=True)
    features = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string),
        "image/source_id": tf.io.FixedLenFeature([], tf.string, ""),
    }

    def read(record: tf.Tensor) -> dict[str, tf.Tensor]:
        found, own = decoder.decode(record), tf.io.parse_single_example(record, features)
        # The decoder's own ids have 22 bits, too few to be different for many images.
        hashed = tf.strings.as_string(tf.strings.to_hash_bucket_fast(own["image/encoded"], 2**62))
        return {
            "source_id": tf.where(own["image/source_id"] == "", hashed, own["image/source_id"]),
            "stored_size": tf.shape(found["image"])[:2],
            "declared_size": tf.stack([found["height"], found["width"]]),
            "orientation": transforms.exif_orientation(own["image/encoded"]),
            "boxes": found["groundtruth_boxes"],
            "labels": found["groundtruth_classes"],
            "is_crowd": found["groundtruth_is_crowd"],
            "area": found["groundtruth_area"],
        }

    return read


def stored_size(image_bytes: tf.Tensor) -> tf.Tensor:
    """Read (height, width) from the header of a JPEG or PNG file, as stored, EXIF orientation not applied.

    Args:
        image_bytes: string[].

    Returns:
        int32[2]; zeros for other kinds of files.
    """
    jpeg, png = (tf.strings.substr(image_bytes, 0, len(magic)) == magic for magic in transforms.IMAGE_MAGIC)

    def png_size() -> tf.Tensor:
        width_and_height = tf.strings.substr(image_bytes, 16, 8)
        return tf.reverse(tf.io.decode_raw(width_and_height, tf.int32, little_endian=False), [0])

    size = tf.case(
        [(jpeg, lambda: tf.io.extract_jpeg_shape(image_bytes)[:2]), (png, png_size)], lambda: tf.zeros([2], tf.int32)
    )
    return tf.ensure_shape(size, [2])
