"""Paths of this machine's disk and of other file systems, such as gs://bucket/run and s3://bucket/photographs.

What has :// in it belongs to fsspec, whose path objects (`UPath`) have the methods of `Path` but are none: what takes
files of this machine only refuses them, and gets a `local_file`.
"""

import contextlib
import glob
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from dh_keras.errors import DataError, one_line


def is_remote(path: str | Path) -> bool:
    """Whether a path is not one of this machine's disk."""
    return "://" in str(path)


def to_path(path: str | Path) -> Path:
    """Return a `Path`, or the `UPath` of what has :// in it.

    Raises:
        DataError: when the library of its file system is not installed, or there is none.
    """
    if not is_remote(path):
        return Path(path)
    from fsspec import get_filesystem_class
    from upath import UPath

    try:
        found = UPath(path)
        get_filesystem_class(found.protocol)  # UPath looks for some libraries only when a file is read
        return found
    except (ImportError, ValueError) as error:
        raise DataError(f"{path}: {one_line(error)}") from error


def absolute(path: str | Path) -> str:
    """Return the absolute path as text, without following links and without a / at the end."""
    return str(path).rstrip("/") if is_remote(path) else os.path.abspath(path)


def normalized(path: str) -> str:
    """Return an absolute path without . and .. in it."""
    scheme, mark, rest = path.partition("://") if is_remote(path) and path[0] != os.sep else ("", "", path)
    return scheme + mark + os.path.normpath(rest)


def matching(pattern: str) -> list[str]:
    """Return what a pattern of names matches, unsorted; ** stands for any folders, and what exists for itself."""
    if not is_remote(pattern):
        path = Path(pattern)
        known = next((one for one in (path, *path.parents[:-1]) if os.path.exists(one)), None)
        if known is not None:  # a [ in the name of a folder is none of the pattern
            pattern = os.path.join(glob.escape(str(known)), *path.parts[len(known.parts) :])
        return glob.glob(pattern, recursive=True)
    path = to_path(pattern)
    return [path.fs.unstrip_protocol(name) for name in path.fs.glob(path.path)]


def open_binary(path: str | Path, *, block_size: int) -> BinaryIO:
    """Open a file to read it.

    Args:
        path: of the file.
        block_size: bytes that are fetched at once from another file system.
    """
    return to_path(path).open("rb", block_size=block_size) if is_remote(path) else open(path, "rb")


def local_file(path: str | Path) -> AbstractContextManager[Path]:
    """Give a file of this machine: the path itself, or a copy for as long as the block lasts."""
    return _local(path, lambda remote, copy: remote.fs.get_file(remote.path, str(copy)))


def local_folder(path: str | Path) -> AbstractContextManager[Path]:
    """Give a folder of this machine: the path itself, or a copy with all that is in it; see `local_file`."""
    return _local(path, lambda remote, copy: remote.fs.get(remote.path.rstrip("/") + "/", f"{copy}/", recursive=True))


@contextlib.contextmanager
def _local(path: str | Path, fetch: Callable[[Path, Path], object]) -> Iterator[Path]:
    path = to_path(path)
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="dh_keras-") as folder:
        copy = Path(folder, path.name)
        fetch(path, copy)
        yield copy
