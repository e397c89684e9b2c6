"""What the headers of a split's image files said, kept beside the annotations so that no start opens them all again.

The file is hidden, `.NAME.images.npz` for annotations NAME. Whatever reads the same annotations finds it: the next
start of any command, and other machines that see the disk. It only saves time: where it is damaged or cannot be
written, the files are opened.

Letter: N images.
"""

import contextlib
import io
from pathlib import Path

import numpy as np

from dh_keras.errors import WriteError
from dh_keras.files import PARTIAL_PREFIX, write_bytes

# Raise this when the same file would give another header.
_VERSION = 1
_ARRAYS = {"stamps": (np.int64, 2), "headers": (np.int32, 3)}


def cache_of(annotations: Path) -> Path:
    """Return where the headers of an annotation file's images are kept."""
    return annotations.with_name(f".{annotations.name}.images.npz")


def read_headers(annotations: Path, names: list[str], stamps: np.ndarray) -> np.ndarray:
    """Look up what is known of files that have not changed.

    Args:
        annotations: the annotation file.
        names: of the N image files, relative to their folder.
        stamps: int64[N, 2], size in bytes and time of the last change in nanoseconds.

    Returns:
        int32[N, 3], stored height, stored width and EXIF orientation; zeros where nothing is known.
    """
    headers = np.zeros((len(names), 3), np.int32)
    try:
        with np.load(io.BytesIO(cache_of(annotations).read_bytes())) as archive:
            if archive["version"] != _VERSION:
                return headers
            known_names = archive["names"].tobytes().decode(errors="surrogateescape").split("\0")
            known = {name: archive[name] for name in _ARRAYS}
        for name, (dtype, width) in _ARRAYS.items():
            if known[name].dtype != dtype or known[name].shape != (len(known_names), width):
                return headers
        if (known["headers"] < 1).any():
            return headers
    except Exception:  # zipfile, zlib and NumPy raise many types on damaged files
        return headers
    row_of = {name: row for row, name in enumerate(known_names)}
    rows = np.array([row_of.get(name, -1) for name in names], np.int64)
    same = (rows >= 0) & (known["stamps"][rows] == stamps).all(axis=1)
    headers[same] = known["headers"][rows[same]]
    return headers


def write_headers(annotations: Path, names: list[str], stamps: np.ndarray, headers: np.ndarray) -> None:
    """Keep what `read_headers` is to find; files whose headers are zeros are left out."""
    if annotations.name.startswith(PARTIAL_PREFIX):  # it is about to get another name
        return
    good = np.flatnonzero(headers.all(axis=1))
    joined = "\0".join(names[row] for row in good.tolist()).encode(errors="surrogateescape")
    buffer = io.BytesIO()
    np.savez(
        buffer,
        version=_VERSION,
        names=np.frombuffer(joined, np.uint8),
        stamps=stamps[good].astype(np.int64),
        headers=headers[good].astype(np.int32),
    )
    with contextlib.suppress(WriteError, OSError):  # another process may be writing it, or nobody may
        write_bytes(cache_of(annotations), buffer.getvalue())
