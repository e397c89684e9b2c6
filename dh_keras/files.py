"""The only way anything is written: files and folders are complete or not there, and a disk's refusal is one line.

Everything is made under a name that begins with `PARTIAL_PREFIX`, forced to the disk, and moved to its place in one
step. So a kill leaves what was there before, and something that nobody takes for a result and the next try removes.

On another file system than the disk's (`paths`) a file appears whole too, as it is made here and copied when it is
complete. A folder is copied file by file, those directly in it last: a kill while it is copied leaves a part, and of
two processes that make one folder at the same time neither may notice the other.
"""

import contextlib
import errno
import fcntl
import glob
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from dh_keras.errors import DataError, UserError, WriteError, one_line
from dh_keras.paths import is_remote, to_path

# In front of the name: encoders choose the format by its end, and Keras insists on .weights.h5.
PARTIAL_PREFIX = ".partial-"
CHOOSE_ANOTHER = "choose another --output"
CHOOSE_OR_RESUME = f"{CHOOSE_ANOTHER}, or --resume to go on"

_ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of this user's space",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EIO: "check the disk, or write to another",
    errno.EROFS: "write to a disk that is not read-only",
    errno.EACCES: "write where this user may",
    errno.EPERM: "write where this user may",
    errno.ENOTDIR: "choose a folder that can be made",
    errno.EEXIST: "choose a folder that can be made",
    errno.EISDIR: "move the folder of this name away",
    errno.ENOTEMPTY: "another program has filled it meanwhile; choose another",
    errno.ENAMETOOLONG: "choose a shorter name",
}
_OF_WRITING_ONLY = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def writing(path: str | Path, *, partial: Path | None = None) -> Iterator[None]:
    """Turn what a library raises because the disk does not take `path` into one line.

    Args:
        path: what is written, a file or a folder.
        partial: where it is made; errors name `path` in its place.

    Raises:
        WriteError: naming the file, what the system says and what to do; other errors pass as they are.
    """
    try:
        yield
    except UserError as error:
        if partial is None or str(partial) not in str(error):
            raise
        raise type(error)(str(error).replace(str(partial), str(path))) from error
    except Exception as error:
        code = _error_number(error, path)
        if code is None:
            raise
        raise WriteError(f"{path}: cannot be written: {os.strerror(code)}; {_ADVICE[code]}") from error


def _error_number(error: Exception, path: str | Path) -> int | None:
    """What the system said about writing to a path; None for anything else, such as a file that cannot be read."""
    number, text = getattr(error, "errno", None), str(error)
    if number not in _ADVICE:
        # HDF5 and TensorFlow put the system's words in the text of errors of their own.
        named = [code for code in _ADVICE if os.strerror(code).lower() in text.lower()]
        number = named[0] if named else None
    name = getattr(error, "filename", None)
    is_ours = (
        number in _OF_WRITING_ONLY
        or (isinstance(error, OSError) and name is None)
        or PARTIAL_PREFIX in text
        or str(path) in text
        or (name is not None and os.path.realpath(path).startswith(os.path.realpath(name)))  # a folder above
    )
    return number if is_ours else None


def is_utf8(text: str) -> bool:
    """Whether a text can be written; Python gives names of files that are no UTF-8 as text that cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_absent(path: str | Path, advice: str = CHOOSE_ANOTHER) -> None:
    """See that a new file or folder can be made, before the work that is to fill it.

    Args:
        path: what is going to be written.
        advice: end of the line about a path that exists.

    Raises:
        DataError: when something has this name already.
        WriteError: when nothing can be made there.
    """
    if _exists(path):
        raise DataError(f"{path}: exists already and is not overwritten; {advice}")
    require_writable(path, 0)


def require_new_folder(path: str | Path, advice: str = CHOOSE_ANOTHER) -> None:
    """See that a folder is absent or empty, and can be written to; see `require_absent`."""
    if not is_new_folder(path):
        raise DataError(f"{path}: exists already and is not overwritten; {advice}")
    require_writable(path, 0)


def is_new_folder(path: str | Path) -> bool:
    """Whether a folder is absent, or holds nothing but what a kill left."""
    if not _exists(path):
        return True
    if is_remote(path):
        with _reaching(path):
            return to_path(path).is_dir() and next(to_path(path).iterdir(), None) is None
    with writing(path):
        return os.path.isdir(path) and all(name.startswith(PARTIAL_PREFIX) for name in os.listdir(path))


def _exists(path: str | Path) -> bool:
    """Whether something is there; raises when nothing can be, as a folder above is a file or a name too long."""
    if is_remote(path):
        with _reaching(path):
            return to_path(path).exists()
    with writing(path):
        try:
            os.lstat(path)
        except FileNotFoundError:
            return False
    return True


def require_writable(folder: str | Path, num_bytes: int) -> None:
    """Make sure, before hours of work, that files can be made in a folder and have room.

    Args:
        folder: a folder, or what can be made.
        num_bytes: what is going to be written.

    Raises:
        WriteError: when no file can be made there, or less than num_bytes are free.
    """
    _exists(folder)  # or say why it never can
    if is_remote(folder):
        probe = to_path(folder).parent / f"{PARTIAL_PREFIX}probe"
        with _reaching(folder):
            probe.fs.pipe_file(probe.path, b"")
            probe.fs.rm_file(probe.path)
        return
    absolute = Path(folder).absolute()
    existing = next(path for path in (absolute, *absolute.parents) if os.path.exists(path))
    probe = existing / f"{PARTIAL_PREFIX}probe"
    with writing(folder):
        probe.touch()
        probe.unlink(missing_ok=True)
        status = os.statvfs(existing)
    free = status.f_bavail * status.f_frsize
    if free < num_bytes:
        raise WriteError(
            f"{folder}: the run needs about {num_bytes / 1e6:,.0f} MB and the disk has {free / 1e6:,.0f} MB left; "
            "free some space, or choose another --output"
        )


@contextlib.contextmanager
def replaced_file(path: str | Path) -> Iterator[Path]:
    """Give the path of a file to write, which takes the place of `path` when the block ends well.

    A failure, or a kill, leaves what was there before; so does a block that writes nothing. Folders above are made.
    Inside what is moved to its place as a whole, the path is `path` itself.

    Raises:
        WriteError: when the disk does not take it.
    """
    path = to_path(path)
    if is_remote(path):
        with _stand_in(path) as partial:
            yield partial
            if partial.exists():
                _copy(partial, path)
        return
    if any(part.startswith(PARTIAL_PREFIX) for part in path.parts):
        make_folder(path.parent)
        with writing(path):
            yield path
        return
    partial = path.with_name(PARTIAL_PREFIX + path.name)
    with writing(path, partial=partial):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        try:
            yield partial
            if partial.exists():
                _to_disk(partial)
                os.replace(partial, path)
                _to_disk(path.parent)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


@contextlib.contextmanager
def new_file(path: str | Path, advice: str = CHOOSE_ANOTHER) -> Iterator[Path]:
    """See `replaced_file`; refuse a path that exists, as `require_absent` does."""
    require_absent(path, advice)
    with replaced_file(path) as partial:
        yield partial
        require_absent(path, advice)  # another process may have been faster


@contextlib.contextmanager
def replaced_text(path: str | Path) -> Iterator[TextIO]:
    r"""Give a text file to write to, UTF-8 with line ends as they are; see `replaced_file`.

    What is no UTF-8 in the name of a file becomes \udcff, which JSON reads as what it was.
    """
    with (
        replaced_file(path) as partial,
        open(partial, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        yield file


@contextlib.contextmanager
def opened_to_write(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write bytes to, in a folder that `filled_folder` or `new_folder` is about to put in its place."""
    with path.open("wb") as file:
        yield file


def write_bytes(path: str | Path, data: bytes | memoryview) -> None:
    """Write a whole file; see `replaced_file`."""
    with replaced_file(path) as partial:
        partial.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a whole text as UTF-8 with line ends as they are; see `replaced_text`."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: str | Path, tree: Any, *, indent: int | None = 1) -> None:
    """Write a tree as JSON; see `replaced_file`."""
    write_text(path, json.dumps(tree, indent=indent, ensure_ascii=False))


def new_folder(path: str | Path, advice: str = CHOOSE_ANOTHER) -> AbstractContextManager[Path]:
    """See `filled_folder`; refuse a path that is neither absent nor an empty folder, as `require_new_folder` does."""
    return _placed_folder(path, lambda: require_new_folder(path, advice))


def filled_folder(path: str | Path) -> AbstractContextManager[Path]:
    """Give a hidden folder to write to, which becomes `path` in one step when the block ends well.

    Where `path` is a folder that holds something, its files of the same names are replaced one by one, and others left
    alone; so it is with one that must stay itself, because a disk is mounted there or this process works in it.

    Raises:
        WriteError: when the disk does not take it; `path` is what it was before.
    """
    return _placed_folder(path, lambda: None)


@contextlib.contextmanager
def _placed_folder(path: str | Path, check: Callable[[], None]) -> Iterator[Path]:
    """See `filled_folder`; `check` looks before the work, and behind it, as another process may have been faster."""
    check()
    if is_remote(path):
        with _stand_in(to_path(path)) as folder:
            folder.mkdir()
            yield folder
            check()
            made = [file for file in folder.rglob("*") if file.is_file()]
            for file in sorted(made, key=lambda file: (-len(file.parts), file)):
                _copy(file, to_path(path) / file.relative_to(folder).as_posix())
        return
    final = Path(os.path.realpath(path))
    inside = os.path.isdir(final) and (
        not is_new_folder(path) or os.path.ismount(final) or not os.access(final.parent, os.W_OK) or final == Path.cwd()
    )
    with _partial_folder(final if inside else final.parent, final.name, shown=path) as partial:
        yield partial
        for folder, _, names in os.walk(partial, topdown=False):
            for name in (*names, ""):  # the folder itself comes last
                _to_disk(Path(folder, name))
        check()
        if final.is_dir() and not inside:
            remove_leftovers(final)
            shutil.copymode(final, partial)
        if inside or (final.is_dir() and any(final.iterdir())):
            for entry in sorted(partial.iterdir()):
                os.replace(entry, final / entry.name)
            _to_disk(final)
        else:
            os.replace(partial, final)
            _to_disk(final.parent)


@contextlib.contextmanager
def _partial_folder(parent: Path, name: str, *, shown: str | Path) -> Iterator[Path]:
    """A hidden folder for this process alone; what killed processes left of the same name is removed."""
    partial = parent / f"{PARTIAL_PREFIX}{name}-{uuid.uuid4().hex[:8]}"
    with writing(shown, partial=partial):
        parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(parent, glob.escape(name) + "-" + "[0-9a-f]" * 8)
        partial.mkdir()
        try:
            with _lock(partial):
                yield partial
        finally:
            remove_folder(partial)


@contextlib.contextmanager
def _stand_in(path: Path) -> Iterator[Path]:
    """Give a path of this machine to make a file or folder at, of the same name and below a folder of the same name."""
    with tempfile.TemporaryDirectory(prefix="dh_keras-") as folder:
        partial = Path(folder, path.parent.name, path.name)
        with writing(path, partial=partial):
            partial.parent.mkdir(exist_ok=True)
            yield partial


def _copy(file: Path, path: Path) -> None:
    """Copy a file of this machine to another file system, where it appears when all of it has arrived."""
    with _reaching(path):
        path.fs.put_file(str(file), path.path)


@contextlib.contextmanager
def _reaching(path: str | Path) -> Iterator[None]:
    """Turn what the library of another file system raises, which may be of any type, into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = one_line(error) or type(error).__name__
        raise WriteError(f"{path}: cannot be written: {reason}; check the name, and what this user may") from error


def remove_leftovers(folder: Path, pattern: str = "*") -> None:
    """Remove what killed processes left in a folder, of names that a pattern matches."""
    if is_remote(folder):
        return  # everything is made on this machine
    for path in folder.glob(PARTIAL_PREFIX + pattern):
        if not path.is_dir():
            path.unlink(missing_ok=True)
            continue
        with contextlib.suppress(OSError):
            if any(path.iterdir()):  # the process of an empty one may be about to take the lock
                with _lock(path) as locked:
                    if locked:
                        remove_folder(path)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Lock a folder, if no other has and the file system can; the system takes the lock from a process that dies."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except OSError:
            locked = False
        yield locked
    finally:
        os.close(descriptor)


def make_folder(path: str | Path) -> None:
    """Make a folder and those above it, where they are not there yet.

    Raises:
        WriteError: when it cannot be made.
    """
    if is_remote(path):
        return  # there, a folder is what the names of its files begin with
    with writing(path):
        Path(path).mkdir(parents=True, exist_ok=True)


def remove_folder(path: str | Path) -> None:
    """Remove a folder with all that is in it, as far as that can be done."""
    if is_remote(path):
        with contextlib.suppress(Exception):
            to_path(path).fs.rm(to_path(path).path, recursive=True)
        return
    shutil.rmtree(path, ignore_errors=True)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
