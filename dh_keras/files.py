"""Files that are complete or not there at all, and one line when a disk does not take one."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dh_keras.errors import WriteError

PARTIAL_PREFIX = ".partial-"
ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of this user's space",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EIO: "check the disk, or write to another",
    errno.EROFS: "write to a disk that is not read-only",
    errno.EACCES: "write where this user may",
    errno.EPERM: "write where this user may",
    errno.ENOTDIR: "choose a folder that can be made",
}


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn what a library raises because the disk does not take `path` into one line.

    Raises:
        WriteError: naming the file, what the system says and what to do; other errors pass as they are.
    """
    try:
        yield
    except WriteError:
        raise
    except Exception as error:
        code = _error_number(error)
        if code is None:
            raise
        raise WriteError(f"{path}: cannot be written: {os.strerror(code)}; {ADVICE[code]}") from error


def _error_number(error: BaseException) -> int | None:
    """HDF5 and TensorFlow put the system's words in the text of errors of their own."""
    if getattr(error, "errno", None) in ADVICE:
        return error.errno
    named = [code for code in ADVICE if os.strerror(code).lower() in str(error).lower()]
    return named[0] if named else None


def replace_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a file beside `path`, then move it there; a failure, or a kill, leaves what was there before.

    Raises:
        WriteError: when the disk does not take it.
    """
    # Keras insists on the ending .weights.h5, so the marker goes in front.
    partial = path.with_name(PARTIAL_PREFIX + path.name)
    with writing(path):
        try:
            write(partial)
            _to_disk(partial)
            os.replace(partial, path)
            _to_disk(path.parent)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partial_files(folder: Path) -> None:
    """Remove what a killed process left behind."""
    for path in folder.glob(PARTIAL_PREFIX + "*"):
        path.unlink(missing_ok=True)


def require_writable(folder: Path, num_bytes: int) -> None:
    """Make sure, before hours of work, that files can be made in a folder and have room.

    Args:
        folder: a folder, or one that can be made.
        num_bytes: what is going to be written.

    Raises:
        WriteError: when no file can be made there, or less than num_bytes are free.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    probe = existing / f"{PARTIAL_PREFIX}probe"
    with writing(folder):
        probe.touch()
        probe.unlink()
        status = os.statvfs(existing)
    free = status.f_bavail * status.f_frsize
    if free < num_bytes:
        raise WriteError(
            f"{folder}: the run needs about {num_bytes / 1e6:,.0f} MB and the disk has {free / 1e6:,.0f} MB left; "
            "free some space, or choose another --output"
        )
