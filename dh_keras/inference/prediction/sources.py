"""Which files are detected in: what stands on the command line or in a list, in one fixed order."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dh_keras.data.image_opening import IMAGE_SUFFIXES
from dh_keras.errors import DataError, reason_of
from dh_keras.inference.web import is_web_address, to_file
from dh_keras.paths import absolute, matching, to_path

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")

# Images whose results are written together, and lost together when a run is killed.
CHUNK_IMAGES = 32

# File systems take 255, encrypting ones 143; a suffix, a number and the prefix of what is being written are added.
_PICTURE_NAME_BYTES = 110


@dataclass(frozen=True)
class Item:
    """One file to detect in.

    Args:
        index: its place among all files, those of other shards included.
        path: the file.
        picture: name of the drawn picture or video, without suffix; no other file has it.
    """

    index: int
    path: Path
    picture: str

    @property
    def is_video(self) -> bool:
        """Whether it is a video by its name; in the web there are photographs only."""
        return is_video(self.path)


@dataclass(frozen=True)
class Shard:
    """A share of the files: every `count`-th one, from the `number`-th on.

    Args:
        number: 1..count.
        count: shards that all files are divided among.

    Raises:
        DataError: for a number outside 1..count.
    """

    number: int = 1
    count: int = 1

    def __post_init__(self):
        if not 1 <= self.number <= self.count:
            raise DataError(f"--shard: expected a number from 1 to {self.count}, got {self}")

    def __str__(self) -> str:
        """As on the command line."""
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read "3/16".

        Raises:
            DataError: for anything else, and for a number outside 1..16.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match:
            raise DataError(f"--shard: expected a number and a count such as 3/16, got {text!r}")
        if int(match[2]) == 0:
            raise DataError(f"--shard: expected a count of at least 1, got {text!r}")
        return cls(int(match[1]), int(match[2]))


def is_video(path: Path) -> bool:
    """See `Item.is_video`."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not is_web_address(path)


def list_sources(sources: Iterable[str | Path], list_file: str | Path | None = None) -> list[Path]:
    """Files that sources stand for, each once, in the order in which they are first named.

    Args:
        sources: files, and addresses of photographs in the web; folders, which stand for the images directly in them,
            by name, without hidden ones; and patterns such as "photos/**/*.jpg", which stand for the images and videos
            they match, by name.
        list_file: a text file with the path of a file in each line, relative to the working directory.

    Raises:
        DataError: naming the first source that stands for nothing.
    """
    found = [path for source in sources for path in files_of(source)]
    if list_file is not None:
        found += _read_list(to_path(list_file))
    if not found:
        raise DataError("there is nothing to detect in; give images, folders, patterns or videos, or --list FILE")
    first: dict[str, Path] = {}
    for path in found:
        first.setdefault(absolute(path), path)
    return list(first.values())


def describe_left_out(sources: Iterable[str | Path]) -> str | None:
    """One line about the files of folders that `list_sources` leaves out, by their endings; None without any."""
    folders = [path for path in map(to_file, sources) if not is_web_address(path) and path.is_dir()]
    others = [file for folder in folders for file in _inside(folder, images=False)]
    if not others:
        return None
    count = Counter(file.suffix.lower() or "without ending" for file in others)
    return f"{len(others)} other file(s) were left out ({', '.join(f'{end} {n}' for end, n in count.most_common())})"


def _inside(folder: Path, *, images: bool) -> list[Path]:
    """The images in a folder by name, or its other files, without hidden ones."""
    # Macs put a ._photo.jpg, which is no image, beside each photo.jpg on a disk of another system.
    try:
        shown = [one for one in folder.iterdir() if not one.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {reason_of(error)}") from error
    return sorted(one for one in shown if (one.suffix.lower() in IMAGE_SUFFIXES) == images and not one.is_dir())


def files_of(source: str | Path) -> list[Path]:
    """Files that one source stands for; see `list_sources`."""
    path = to_file(source)
    if is_web_address(source):
        return [path]
    if path.is_dir():
        inside = _inside(path, images=True)
        if not inside:
            left_out = describe_left_out([path])
            raise DataError(
                f"{path}: the folder holds no {', '.join(IMAGE_SUFFIXES)} file" + (f"; {left_out}" if left_out else "")
            )
        return inside
    if path.is_file():
        return [path]
    if not glob.has_magic(str(source)):
        raise DataError(f"{path}: no such file or folder")
    matches = sorted(map(to_path, matching(str(source))))
    matches = [one for one in matches if one.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES and one.is_file()]
    if not matches:
        raise DataError(f"{source}: the pattern matches no image or video; ** stands for any folders")
    return matches


def _read_list(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DataError(f"--list {path}: cannot be read: {reason}; expected the path of a file in each line") from error
    named = [(number, to_file(line.strip())) for number, line in enumerate(lines, start=1) if line.strip()]
    missing = [(number, one) for number, one in named if not is_web_address(one) and not one.is_file()]
    if missing:
        number, one = missing[0]
        raise DataError(
            f"--list {path}: {len(missing)} of {len(named)} files do not exist, the first is {one} in line {number}"
        )
    if not named:
        raise DataError(f"--list {path}: is empty; expected the path of a file in each line")
    return [one for _, one in named]


def plan_items(paths: Sequence[Path], shard: Shard) -> list[Item]:
    """Items of a shard; their indices and picture names do not depend on the shard."""
    taken: set[str] = set()
    items = [Item(index, path, free_name(path.stem, taken)) for index, path in enumerate(paths)]
    return items[shard.number - 1 :: shard.count]


def plan_chunks(items: Sequence[Item]) -> list[list[Item]]:
    """Items in groups that are finished together: up to `CHUNK_IMAGES` images, or one video."""
    chunks: list[list[Item]] = []
    for item in items:
        is_full = not chunks or item.is_video or chunks[-1][-1].is_video or len(chunks[-1]) == CHUNK_IMAGES
        if is_full:
            chunks.append([])
        chunks[-1].append(item)
    return chunks


def free_name(stem: str, taken: set[str]) -> str:
    """A name that a file system takes and no earlier file has, also where capitals do not count."""
    stem = os.fsencode(stem).decode(errors="replace")
    stem = stem.encode()[:_PICTURE_NAME_BYTES].decode(errors="ignore")
    name, number = stem, 1
    while name.casefold() in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name.casefold())
    return name
