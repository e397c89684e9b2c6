"""A full disk and one that can only be read, for commands that no other test tries so; see full_disk.py."""

import importlib.util
import os

import pytest
from commands import full_disk

NAMES = (
    *("merge-predictions", "make-tfrecords", "inspect-data --fix", "evaluate", "convert-checkpoint", "train --resume"),
    *("analyze", "analyze-heads"),
)
ROOM = 512  # bytes, less than any of them writes


@pytest.fixture(autouse=True, scope="module")
def quick_start(quick_graphs):
    """Leave graphs as they are traced."""


@pytest.fixture(scope="module")
def commands(tmp_path_factory, tiny_overrides):
    return full_disk.Commands(tmp_path_factory.mktemp("commands"), tiny_overrides)


@pytest.fixture(params=NAMES)
def name(request):
    if request.param == "convert-checkpoint" and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is needed to write checkpoints")
    return request.param


def test_a_full_disk_is_one_line_and_all_that_was_there_stays(commands, name):
    assert commands.refuse(name, lambda disk: disk.leave_room(ROOM)).startswith("error: ")


def test_a_disk_that_can_only_be_read_is_one_line(commands, name, tmp_path):
    with full_disk.Disk(tmp_path / "disk") as disk:
        if not disk.mounted and os.geteuid() == 0:
            pytest.skip("root may write everywhere, and no disk can be mounted here")
    line = commands.refuse(name, full_disk.Disk.make_read_only)
    assert "cannot be written: " in line


def test_what_is_half_written_or_lost_is_seen():
    old, new = {"a": b"old"}, {"a": b"new", "b": b"b"}
    full_disk.check_files(old, old, new, parts="(?!)")
    full_disk.check_files(old, new, new, parts="(?!)")
    full_disk.check_files(old, {**old, "part": b"x"}, new, parts="part")
    for after in ({}, {"a": b"ne"}, {**old, "b": b""}, {**old, "part": b"x"}):
        with pytest.raises(AssertionError):
            full_disk.check_files(old, after, new, parts="(?!)")
