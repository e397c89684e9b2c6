"""Image files as they lie on disk: format, size, orientation and completeness, checked without decoding.

TensorFlow is not imported here, so data can be checked anywhere.
"""

import contextlib
import hashlib
import itertools
import os
import stat
import struct
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from dh_keras.data.scan_cache import read_headers, write_headers
from dh_keras.errors import DataError, one_line
from dh_keras.paths import absolute, is_remote, open_binary, to_path

# EXIF is looked for in this many leading bytes and JPEG segments only; `transforms.exif_orientation` does the same.
EXIF_WINDOW = 65536
EXIF_MAX_SEGMENTS = 64
EXIF_MAX_ENTRIES = 512

_TAIL = 4096
_AT_ONCE = 256


def check_images_on_disk(
    path: Path, images_dir: Path, paths: list[str], declared: list[tuple[int, int] | None]
) -> tuple[np.ndarray, np.ndarray]:
    """Return int32[N, 2] upright sizes and int32[N] orientations, or raise for the first bad file.

    Only files that are new or changed since the last start are opened; see `scan_cache`.
    """
    with ThreadPoolExecutor(max_workers=min(16, 4 * (os.cpu_count() or 1))) as pool:
        if is_remote(images_dir):
            stamps = _remote_stamps(images_dir, paths)
        else:
            stamps = np.concatenate(list(pool.map(_stamps, _slices(paths))))
        missing = np.flatnonzero(stamps[:, 0] < 0)
        if len(missing):
            first = paths[missing[0]]
            near = None if is_remote(images_dir) else near_name(images_dir, first)
            raise DataError(
                f"annotations {path}: {len(missing)} of {len(paths)} image files are missing, the first is {first}; "
                + (f"there is {near}; correct file_name" if near else "check the image folder")
            )
        root = os.path.join(absolute(images_dir), "")
        names = [one.removeprefix(root) for one in paths]
        headers = read_headers(path, names, stamps)
        unknown = np.flatnonzero(headers[:, 0] == 0)
        read = pool.map(_headers, _slices([paths[row] for row in unknown]))
        faults: dict[int, DataError] = {}
        for row, header in zip(unknown.tolist(), itertools.chain.from_iterable(read), strict=True):
            if isinstance(header, DataError):
                faults[row] = header
            else:
                (headers[row, 0], headers[row, 1]), headers[row, 2] = header
    if len(unknown):
        write_headers(path, names, stamps, headers)
    found = [
        str(faults[row]) if row in faults else _frame(paths[row], (height, width), orientation, declared[row])
        for row, (height, width, orientation) in enumerate(headers.tolist())
    ]
    problems = [item for item in found if isinstance(item, str)]
    if problems:
        others = f" ({len(problems) - 1} more images have problems)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{others}")
    return np.array([size for size, _ in found], np.int32), np.array([turn for _, turn in found], np.int32)


def _slices(paths: list[str]) -> list[list[str]]:
    """Handing single files to threads would take longer than looking at them."""
    return [paths[start : start + _AT_ONCE] for start in range(0, len(paths), _AT_ONCE)]


def _stamps(paths: list[str]) -> np.ndarray:
    """Return int64[., 2], size and time of each file, -1 where there is none."""
    stamps = np.full((len(paths), 2), -1, np.int64)
    for row, path in enumerate(paths):
        with contextlib.suppress(OSError, ValueError):
            status = os.stat(path)
            if stat.S_ISREG(status.st_mode):
                stamps[row] = status.st_size, status.st_mtime_ns
    return stamps


def _remote_stamps(folder: Path, paths: list[str]) -> np.ndarray:
    """See `_stamps`; from one listing of the folder, in which every file system tells a change in its own words."""
    root = to_path(folder)
    found = root.fs.find(root.path, detail=True)
    stamps = np.full((len(paths), 2), -1, np.int64)
    for row, path in enumerate(paths):
        info = found.get(to_path(path).path)
        if info is not None:
            digest = hashlib.sha256(repr(sorted(info.items())).encode()).digest()
            stamps[row] = info["size"] or 0, int.from_bytes(digest[:7], "big")
    return stamps


def _headers(paths: list[str]) -> list[tuple[tuple[int, int], int] | DataError]:
    headers: list[tuple[tuple[int, int], int] | DataError] = []
    for path in paths:
        try:
            headers.append(_read_header(path))
        except DataError as error:
            headers.append(error)
    return headers


def near_name(folder: str | Path, path: str) -> str | None:
    """Say which file a missing one may be, and how its name differs, or None.

    Args:
        folder: of the images.
        path: absolute, of a file that is not there.
    """
    root = os.path.abspath(folder)
    name = os.path.relpath(path, root)
    slashes = name.replace("\\", "/")
    told = {
        slashes: "with / in the place of \\",
        name.strip(): "without the white space at the end",
        unquote(name): "with the characters that % stands for",
        unicodedata.normalize("NFC", name): "with accents that are part of their letters",
        unicodedata.normalize("NFD", name): "with accents that are characters of their own",
        slashes.rpartition("/")[2]: "without the folders before it",
        os.path.join(os.path.basename(root), name): "in a folder of this name",
    }
    for other, difference in told.items():
        if other and other != name and os.path.isfile(os.path.join(root, other)):
            return f"{other!r}, {difference}"
    parent, last = os.path.split(os.path.join(root, slashes))
    if os.path.isdir(parent):
        for other in sorted(os.listdir(parent)):
            if _folded(other) == _folded(last):
                return f"{other!r}, whose name is nearly the same"
        for other in sorted(os.listdir(parent)):
            if _folded(os.path.splitext(other)[0]) == _folded(os.path.splitext(last)[0]):
                return f"{other!r}, with another ending"
    return None


def _folded(name: str) -> str:
    """What is left of a name when capitals, white space, accents' composition and % codes do not count."""
    return "".join(unicodedata.normalize("NFKC", unquote(name)).casefold().split())


def upright_frame(path: str, declared: tuple[int, int] | None) -> tuple[tuple[int, int], int] | str:
    """Find the frame of an image's boxes from the header of its file; see `choose_frame`.

    Args:
        path: the image file.
        declared: (height, width) of the JSON in pixels, if it has one.

    Returns:
        ((height, width), EXIF orientation to apply), or one line saying what is wrong with the file.
    """
    try:
        raw, orientation = _read_header(path)
    except DataError as error:
        return str(error)
    return _frame(path, raw, orientation, declared)


def _frame(
    path: str, stored: tuple[int, int], orientation: int, declared: tuple[int, int] | None
) -> tuple[tuple[int, int], int] | str:
    frame = choose_frame(stored, orientation, declared)
    if frame is not None:
        return frame
    shown = f"{stored[1]}x{stored[0]}" + (f" (EXIF orientation {orientation})" if orientation != 1 else "")
    return (
        f"image {path}: the file is {shown} but its annotation says {declared[1]}x{declared[0]} (width x height); "
        "correct width and height, and the boxes if they belong to another size"
    )


def choose_frame(
    stored: tuple[int, int], orientation: int, declared: tuple[int, int] | None
) -> tuple[tuple[int, int], int] | None:
    """Decide whether the boxes of an image are in its upright or in its stored pixels.

    Most tools annotate what they show, the image turned by its EXIF tag; some ignore the tag. Where the tag swaps the
    sides, the annotated size tells which it was.

    Args:
        stored: (height, width) of the file in pixels.
        orientation: of its EXIF tag, 1..8.
        declared: (height, width) of the annotation in pixels, if it has one.

    Returns:
        ((height, width), EXIF orientation to apply), or None when the annotation is of another size.
    """
    turned = stored[::-1] if orientation >= 5 else stored
    if declared in (None, turned):
        return turned, orientation
    return (stored, 1) if declared == stored else None


def _read_header(path: str) -> tuple[tuple[int, int], int]:
    """Return (height, width) as stored and the EXIF orientation; refuse other formats and cut-off files."""
    from PIL import UnidentifiedImageError

    from dh_keras.data.image_opening import open_image

    advice = "replace the file or remove it from the annotations"
    try:
        with open_binary(path, block_size=EXIF_WINDOW) as file:
            head = file.read(EXIF_WINDOW)
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            tail = file.read()
            with open_image(file) as image:
                kind, size = image.format, image.size
                if kind in ("JPEG", "MPO", "PNG") and not _looks_complete(kind, tail):
                    image.load()  # raises when data is really missing; files with something appended pass
    except UnidentifiedImageError:
        raise DataError(f"image {path}: not an image; expected JPEG or PNG; {advice}") from None
    except Exception as error:  # Pillow raises many types on broken headers
        raise DataError(f"image {path}: unreadable or truncated ({one_line(error)}); {advice}") from error
    if kind not in ("JPEG", "MPO", "PNG"):
        raise DataError(
            f"image {path}: format {kind}, expected JPEG or PNG (by content, not by name); convert it, for "
            "example with Pillow: Image.open(old).convert('RGB').save('new.png'), and change file_name"
        )
    return (size[1], size[0]), read_exif_orientation(head)


def _looks_complete(kind: str, tail: bytes) -> bool:
    if kind == "PNG":
        return b"IEND\xae\x42\x60\x82" in tail
    return tail.rstrip(b"\x00\xff\r\n ").endswith(b"\xff\xd9")


def read_exif_orientation(head: bytes) -> int:
    """Read the EXIF orientation of a JPEG file, byte for byte as `transforms.exif_orientation` does.

    Pillow's `getexif` would not agree with the graph that a SavedModel serves: it gives up at the first broken entry,
    reads other types of numbers, and takes the orientation of XMP and of PNG files, too.

    Args:
        head: the file's first bytes; at most `EXIF_WINDOW` of them are looked at.

    Returns:
        1..8; 1 when there is no valid tag or the file is not a JPEG.
    """
    head = head[:EXIF_WINDOW]
    try:
        tiff = _find_exif(head)
        if tiff is None:
            return 1
        order = {b"II": "<", b"MM": ">"}[head[tiff : tiff + 2]]
        magic, offset = struct.unpack_from(f"{order}HI", head, tiff + 2)
        (entries,) = struct.unpack_from(f"{order}H", head, tiff + offset)
        if magic != 42:
            return 1
        for entry in range(min(entries, EXIF_MAX_ENTRIES)):
            place = tiff + offset + 2 + 12 * entry
            tag, kind = struct.unpack_from(f"{order}HH", head, place)
            if tag == 0x0112 and kind in (3, 4):
                (value,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), head, place + 8)
                return value if 1 <= value <= 8 else 1
    except (struct.error, KeyError):
        pass
    return 1


def _find_exif(head: bytes) -> int | None:
    """Return where the TIFF header of the EXIF segment starts."""
    if head[:2] != b"\xff\xd8":
        return None
    place = 2
    for _ in range(EXIF_MAX_SEGMENTS):
        if head[place : place + 1] != b"\xff" or head[place + 1 : place + 2] in (b"\xda", b"\xd9"):
            return None
        if head[place + 1 : place + 2] == b"\xff":  # fill byte before a marker
            place += 1
            continue
        if head[place + 1 : place + 2] == b"\xe1" and head[place + 4 : place + 10] == b"Exif\0\0":
            return place + 10
        place += 2 + struct.unpack_from(">H", head, place + 2)[0]
    return None
