"""What is written is complete or not there, whatever ends the writing, and what was there before stays."""

import ast
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dh_keras import files
from dh_keras.errors import DataError, WriteError
from dh_keras.files import (
    CHOOSE_OR_RESUME,
    filled_folder,
    is_new_folder,
    make_folder,
    new_file,
    new_folder,
    remove_leftovers,
    replaced_file,
    require_absent,
    require_new_folder,
    require_writable,
    write_json,
    write_text,
    writing,
)

PACKAGE = Path(files.__file__).parent
TOO_LONG = "x" * 300


def tree(folder):
    """Content of all files below a folder, by path; None for an empty folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() or not any(path.iterdir()):
            found[str(path.relative_to(folder))] = path.read_text() if path.is_file() else None
    return found


def kill(folder, code):
    """Run code that kills itself with `die()`, in a folder."""
    start = "import os, signal\nfrom dh_keras.files import *\nfrom dh_keras import files\n"
    start += "die = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)\n"
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", start + code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


# Files


def test_a_file_appears_whole_with_the_folders_above_it(tmp_path):
    path = tmp_path / "a" / "b" / "x.weights.h5"
    with replaced_file(path) as partial:
        assert partial.parent == path.parent
        assert partial.name.endswith(".x.weights.h5") or partial.name.endswith("-x.weights.h5")
        partial.write_text("half")
        assert not path.exists()
        partial.write_text("whole")
    assert tree(tmp_path) == {"a/b/x.weights.h5": "whole"}
    with replaced_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "whole"
    assert tree(tmp_path) == {"a/b/x.weights.h5": "new"}


def test_text_and_json_are_utf_8_and_keep_their_line_ends(tmp_path):
    write_text(tmp_path / "x.csv", "größe\r\n1\n")
    assert (tmp_path / "x.csv").read_bytes() == "größe\r\n1\n".encode()
    write_json(tmp_path / "x.json", {"name": "Käse", "ids": [1]})
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{\n "name": "Käse",\n "ids": [\n  1\n ]\n}'
    write_json(tmp_path / "x.json", {"ids": [1, 2]}, indent=None)
    assert (tmp_path / "x.json").read_text() == '{"ids": [1, 2]}'


@pytest.mark.parametrize("error", [KeyError("a bug"), KeyboardInterrupt()])
def test_what_goes_wrong_in_the_block_passes_and_the_old_file_stays(tmp_path, error):
    write_text(tmp_path / "x.txt", "old")

    def write():
        with replaced_file(tmp_path / "x.txt") as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert tree(tmp_path) == {"x.txt": "old"}


def test_a_block_that_writes_nothing_changes_nothing(tmp_path):
    write_text(tmp_path / "x.txt", "old")
    (tmp_path / ".partial-x.txt").write_text("left by a kill")
    with replaced_file(tmp_path / "x.txt"):
        pass
    assert tree(tmp_path) == {"x.txt": "old"}


@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize(
    "code",
    [
        "with replaced_file('x.txt') as partial:\n    partial.write_text('half')\n    die()",
        "with replaced_text('x.txt') as file:\n    print('half', file=file, flush=True)\n    die()",
        "files.os.fsync = die\nwrite_text('x.txt', 'whole, but not on the disk')",
        "files.os.replace = die\nwrite_json('x.txt', 'whole, but not in its place')",
    ],
)
def test_a_kill_while_a_file_is_written_leaves_the_old_one_or_none(tmp_path, old, code):
    if old:
        write_text(tmp_path / "x.txt", old)
    kill(tmp_path, code)
    left = tree(tmp_path)
    assert left.pop("x.txt", None) == old
    assert list(left) == [".partial-x.txt"]
    write_text(tmp_path / "x.txt", "new")
    assert tree(tmp_path) == {"x.txt": "new"}


def test_a_new_file_is_never_written_over_another(tmp_path):
    with new_file(tmp_path / "x.json") as partial:
        write_json(partial, [1])
    assert json.loads((tmp_path / "x.json").read_text()) == [1]
    line = f"{tmp_path}/x.json: exists already and is not overwritten; choose another --output"
    with pytest.raises(DataError) as error, new_file(tmp_path / "x.json"):
        pytest.fail("the block was entered")
    assert str(error.value) == line
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"link: exists already and is not overwritten; take it away"):
        require_absent(tmp_path / "link", "take it away")


def test_a_file_that_another_process_writes_meanwhile_is_kept(tmp_path):
    def write():
        with new_file(tmp_path / "x.txt") as partial:
            partial.write_text("mine")
            (tmp_path / "x.txt").write_text("theirs")

    with pytest.raises(DataError, match=r"x\.txt: exists already and is not overwritten"):
        write()
    assert tree(tmp_path) == {"x.txt": "theirs"}


# Folders


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_appears_whole(tmp_path, exists):
    path = tmp_path / "a" / "out"
    if exists:
        make_folder(path)
        path.chmod(0o750)
    with new_folder(path) as folder:
        write_text(folder / "sub" / "x.txt", "x")
        assert not exists or not any(path.iterdir())
        assert exists or not path.exists()
    assert tree(tmp_path) == {"a/out/sub/x.txt": "x"}
    assert not exists or path.stat().st_mode & 0o777 == 0o750


def test_a_folder_behind_a_link_is_filled_and_the_link_stays(tmp_path):
    make_folder(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    with new_folder(tmp_path / "link") as folder:
        write_text(folder / "x.txt", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "x.txt").read_text() == "x"


@pytest.mark.parametrize("kind", ["mounted", "in use", "parent is read-only"])
def test_a_folder_that_must_stay_itself_is_filled(tmp_path, monkeypatch, kind):
    path = tmp_path / "out"
    make_folder(path)
    before = path.stat().st_ino
    if kind == "mounted":
        monkeypatch.setattr(os.path, "ismount", lambda one: Path(one) == path)
    elif kind == "in use":
        monkeypatch.chdir(path)
        path = Path()
    else:
        monkeypatch.setattr(os, "access", lambda one, mode: Path(one) != tmp_path)
    with new_folder(path) as folder:
        write_text(folder / "x.txt", "x")
        assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert tree(tmp_path) == {"out/x.txt": "x"}
    assert path.stat().st_ino == before


def test_a_new_folder_is_never_written_over_another(tmp_path):
    write_text(tmp_path / "out" / "x.txt", "mine")
    line = f"{tmp_path}/out: exists already and is not overwritten; choose another --output, or --resume to go on"
    with pytest.raises(DataError) as error, new_folder(tmp_path / "out", CHOOSE_OR_RESUME):
        pytest.fail("the block was entered")
    assert str(error.value) == line
    with pytest.raises(DataError, match=r"x\.txt: exists already and is not overwritten; choose another --output$"):
        require_new_folder(tmp_path / "out" / "x.txt")
    assert tree(tmp_path) == {"out/x.txt": "mine"}


def test_a_folder_that_another_process_fills_meanwhile_is_kept(tmp_path):
    def write():
        with new_folder(tmp_path / "out") as folder:
            write_text(folder / "x.txt", "mine")
            write_text(tmp_path / "out" / "x.txt", "theirs")

    with pytest.raises(DataError, match="out: exists already and is not overwritten"):
        write()
    assert tree(tmp_path) == {"out/x.txt": "theirs"}


def test_files_of_the_same_names_are_replaced_and_others_left_alone(tmp_path):
    out = tmp_path / "out"
    for name in ("x.txt", "note.txt"):
        write_text(out / name, "old")
    with filled_folder(out) as folder:
        write_text(folder / "x.txt", "new")
        write_text(folder / "y.txt", "new")
        assert (out / "x.txt").read_text() == "old"
    assert tree(tmp_path) == {"out/note.txt": "old", "out/x.txt": "new", "out/y.txt": "new"}


def test_two_processes_that_fill_one_folder_with_other_names_both_succeed(tmp_path):
    with filled_folder(tmp_path / "out") as one:
        write_text(one / "1.txt", "1")
        with filled_folder(tmp_path / "out") as other:
            write_text(other / "2.txt", "2")
    assert tree(tmp_path) == {"out/1.txt": "1", "out/2.txt": "2"}


@pytest.mark.parametrize("error", [KeyError("a bug"), KeyboardInterrupt()])
@pytest.mark.parametrize("old", [{}, {"out/x.txt": "old"}])
def test_what_goes_wrong_leaves_no_folder_and_nothing_in_one(tmp_path, error, old):
    for name, text in old.items():
        write_text(tmp_path / name, text)

    def write():
        with filled_folder(tmp_path / "out") as folder:
            write_text(folder / "x.txt", "new")
            raise error

    with pytest.raises(type(error)):
        write()
    assert tree(tmp_path) == old


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize(
    "code",
    [
        "with new_folder('out') as folder:\n    write_text(folder / 'x.txt', 'x')\n    die()",
        "with new_folder('out') as folder:\n    write_text(folder / 'x.txt', 'x')\n    files.os.fsync = die",
        "with new_folder('out') as folder:\n    write_text(folder / 'x.txt', 'x')\n    files.os.replace = die",
        "files.os.path.ismount = lambda path: True\n"
        "with new_folder('out') as folder:\n    write_text(folder / 'x.txt', 'x')\n    die()",
    ],
)
def test_a_kill_while_a_folder_is_written_leaves_none_and_the_next_try_cleans_up(tmp_path, exists, code):
    out = tmp_path / "out"
    if exists:
        make_folder(out)
    kill(tmp_path, code)
    assert [name for name in tree(tmp_path) if "/.partial-out-" in f"/{name}"]  # the kill came in the middle
    assert out.exists() == exists
    assert is_new_folder(out)
    with new_folder(out) as folder:
        write_text(folder / "y.txt", "y")
    assert tree(tmp_path) == {"out/y.txt": "y"}


def test_only_folders_that_nobody_fills_are_removed(tmp_path):
    with new_folder(tmp_path / "out") as folder:
        write_text(folder / "x.txt", "x")
        with new_folder(tmp_path / "out-2"):
            remove_leftovers(tmp_path)
        assert (folder / "x.txt").is_file()
    write_text(tmp_path / ".partial-old-01234567" / "x.txt", "x")
    write_text(tmp_path / ".partial-y.txt", "y")
    remove_leftovers(tmp_path, "nothing*")
    assert len(list(tmp_path.glob(".partial-*"))) == 2
    make_folder(tmp_path / ".partial-begun-01234567")  # whose process is about to lock it
    remove_leftovers(tmp_path)
    assert tree(tmp_path) == {".partial-begun-01234567": None, "out-2": None, "out/x.txt": "x"}


# What a disk refuses


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "No space left on device; free some space"),
        (errno.EDQUOT, "free some of this user's space"),
        (errno.EIO, "check the disk"),
        (errno.EROFS, "Read-only file system; write to a disk that is not"),
        (errno.EACCES, "Permission denied; write where this user may"),
    ],
)
def test_what_the_system_says_is_passed_on(tmp_path, number, advice):
    def full(write):
        with write(tmp_path / "x.txt") as partial:
            (partial / "half" if partial.is_dir() else partial).write_text("half")
            raise OSError(number, os.strerror(number))

    for write in (replaced_file, new_file, new_folder, filled_folder):
        with pytest.raises(WriteError, match=rf"{tmp_path}/x\.txt: cannot be written: .*{advice}"):
            full(write)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x.txt", "sub/x.txt"])
def test_a_file_inside_a_new_folder_is_named_as_it_would_be_there(tmp_path, small_files, name):
    def write():
        with new_folder(tmp_path / "out") as folder:
            write_text(folder / name, "x" * 1000)

    small_files()
    with pytest.raises(WriteError) as error:
        write()
    assert str(error.value).startswith(f"{tmp_path}/out/{name}: cannot be written: File too large; raise the limit")
    assert not list(tmp_path.iterdir())


def test_a_file_that_the_disk_does_not_take_leaves_the_old_one(tmp_path, small_files):
    write_text(tmp_path / "x.txt", "old")
    small_files()
    with pytest.raises(WriteError, match=r"x\.txt: cannot be written: File too large"):
        write_text(tmp_path / "x.txt", "x" * 1000)
    assert tree(tmp_path) == {"x.txt": "old"}


def test_a_source_that_cannot_be_read_is_not_blamed_on_the_output(tmp_path):
    def write():
        with new_folder(tmp_path / "out"):
            raise PermissionError(errno.EACCES, "Permission denied", "/photographs/1.jpg")

    with pytest.raises(PermissionError, match=r"/photographs/1\.jpg"):
        write()


def test_errors_in_which_a_library_quotes_the_system_are_recognised():
    for text in ("errno = 28, error message = 'No space left on device'", "out/x; Read-only file system"):
        with pytest.raises(WriteError, match=r"^out/x: cannot be written: "), writing("out/x"):
            raise RuntimeError(text)
    for text in ("photo.jpg; Permission denied", "the file exists", "a bug"):
        with pytest.raises(RuntimeError, match=text), writing("out/x"):
            raise RuntimeError(text)


CANNOT_BE_MADE = [
    ("file/out", "(Not a directory|File exists); choose a folder that can be made"),
    (TOO_LONG, "File name too long; choose a shorter name"),
]
WAYS = [
    require_absent,
    require_new_folder,
    make_folder,
    lambda path: require_writable(path, 0),
    lambda path: write_text(path, "x"),
    lambda path: new_folder(path).__enter__(),
    lambda path: filled_folder(path).__enter__(),
    lambda path: new_file(path).__enter__(),
]


@pytest.mark.parametrize(("name", "line"), CANNOT_BE_MADE)
def test_a_path_that_cannot_be_made_is_refused_in_one_line(tmp_path, name, line):
    (tmp_path / "file").touch()
    for way in WAYS:
        with pytest.raises(WriteError, match=f"^{tmp_path / name}: cannot be written: {line}$"):
            way(tmp_path / name)
    assert tree(tmp_path) == {"file": ""}


def test_a_folder_in_the_place_of_a_file_and_a_file_in_that_of_a_folder_are_kept(tmp_path):
    write_text(tmp_path / "folder" / "x.txt", "x")
    with pytest.raises(WriteError, match=r"folder: cannot be written: Is a directory; move the folder"):
        write_text(tmp_path / "folder", "y")
    with pytest.raises(WriteError, match=r"x\.txt: cannot be written: File exists; choose a folder"):
        make_folder(tmp_path / "folder" / "x.txt")
    assert tree(tmp_path) == {"folder/x.txt": "x"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to_is_refused_before_the_work(tmp_path):
    tmp_path.chmod(0o500)
    for way in WAYS:
        with pytest.raises(WriteError, match="out: cannot be written: Permission denied; write where this user may"):
            way(tmp_path / "out")
    tmp_path.chmod(0o700)


def test_room_is_looked_for_before_the_work(tmp_path):
    require_writable(tmp_path, 1000)
    with pytest.raises(WriteError, match=r"the run needs about 1,000,000,000,000 MB and the disk has [\d,]+ MB left"):
        require_writable(tmp_path, 10**18)
    require_writable(tmp_path / "new" / "run", 0)
    assert not list(tmp_path.iterdir())


# Nothing is written in another way.

WRITING_FUNCTIONS = ("os.replace", "shutil.move", "json.dump", "np.save")
WRITING_METHODS = ("write_text", "write_bytes", "mkdir", "makedirs", "rename", "renames", "rmtree")
WRITING_MODES = {letter + more for letter in "wax" for more in ("", "b", "t", "+", "b+", "+b")} | {"r+", "rb+", "r+b"}


def writes(call):
    """Whether a call opens a file to write to it, or writes, moves or removes by its path."""
    name, arguments = ast.unparse(call.func), [ast.unparse(argument) for argument in call.args]
    if name == "open" or name.endswith(".open"):
        values = [*call.args, *(keyword.value for keyword in call.keywords)]
        modes = {value.value for value in values if isinstance(value, ast.Constant)} & WRITING_MODES
        return bool(modes) and arguments[:1] != ["os.devnull"]
    return name in WRITING_FUNCTIONS or (isinstance(call.func, ast.Attribute) and call.func.attr in WRITING_METHODS)


def lines_that_write(source):
    return sorted(node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and writes(node))


def test_a_call_that_writes_would_be_seen():
    source = """
open(path, "w")
open(path)
path.open("rb")
path.open("ab")
open(path, mode="x")
open(os.devnull, "w")
path.write_text("x")
write_text(path, "x")
os.replace(a, b)
text.replace("a", "b")
shutil.rmtree(path)
"""
    assert lines_that_write(source) == [2, 5, 6, 8, 10, 12]


def test_files_are_written_by_the_functions_of_files_only():
    writers = {path.relative_to(PACKAGE): lines_that_write(path.read_text()) for path in PACKAGE.rglob("*.py")}
    writers = {str(path): lines for path, lines in writers.items() if lines}
    assert list(writers) == ["files.py"], writers
