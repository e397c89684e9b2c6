"""Which files stand behind the words of the command line, and how they are shared out."""

from pathlib import Path

import pytest

from dh_keras.errors import DataError
from dh_keras.inference.prediction.sources import Shard, describe_left_out, list_sources, plan_chunks, plan_items
from dh_keras.paths import matching


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A folder of empty files, which is the working directory."""
    for name in ("b.jpg", "a.PNG", "notes.txt", "clip.mp4", "deep/c.jpeg", "deep/er/d.jpg", "x[1].jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(paths):
    return [str(path) for path in paths]


def test_a_folder_stands_for_its_own_images_and_a_pattern_for_images_and_videos_at_any_depth(tree):
    assert names(list_sources(["."])) == ["a.PNG", "b.jpg", "x[1].jpg"]
    assert names(list_sources(["clip.mp4", "deep"])) == ["clip.mp4", "deep/c.jpeg"]
    everything = ["a.PNG", "b.jpg", "clip.mp4", "deep/c.jpeg", "deep/er/d.jpg", "x[1].jpg"]
    assert names(list_sources(["**"])) == everything
    assert names(list_sources(["**/*.jpg"])) == ["b.jpg", "deep/er/d.jpg", "x[1].jpg"]
    assert names(list_sources(["x[1].jpg"])) == ["x[1].jpg"]


def test_a_folder_stands_for_no_hidden_files_and_no_folders(tree):
    for name in ("._b.jpg", ".partial-c.jpg", ".hidden.png"):
        (tree / name).touch()
    (tree / "album.jpg").mkdir()
    assert names(list_sources(["."])) == ["a.PNG", "b.jpg", "x[1].jpg"]
    assert names(list_sources(["*"])) == ["a.PNG", "b.jpg", "clip.mp4", "x[1].jpg"]
    assert names(list_sources(["._b.jpg"])) == ["._b.jpg"]
    (tree / "deep/hidden").mkdir()
    (tree / "deep/hidden/._b.jpg").touch()
    with pytest.raises(DataError, match=r"^deep/hidden: the folder holds no \.jpg"):
        list_sources(["deep/hidden"])


def test_files_of_a_folder_that_are_left_out_are_counted_by_their_endings(tree):
    assert describe_left_out(["deep", "*.jpg", "clip.mp4"]) is None
    for name in ("e.WEBP", "f.tif", "g.gif", "i.psd", "j.psd", "README", ".hidden"):
        (tree / name).touch()
    assert names(list_sources(["."])) == ["a.PNG", "b.jpg", "e.WEBP", "f.tif", "g.gif", "x[1].jpg"]
    assert describe_left_out(["."]) == "5 other file(s) were left out (.psd 2, without ending 1, .mp4 1, .txt 1)"
    (tree / "empty/k.psd").touch()
    with pytest.raises(
        DataError, match=r"^empty: the folder holds no .*; 1 other file\(s\) were left out \(\.psd 1\)$"
    ):
        list_sources(["empty"])


def test_a_file_that_is_named_twice_counts_once_at_its_first_place(tree):
    assert names(list_sources(["deep/c.jpeg", "**/*.j*g", str(tree / "b.jpg")])) == [
        *("deep/c.jpeg", "b.jpg", "deep/er/d.jpg", "x[1].jpg")
    ]


def test_brackets_in_the_name_of_a_folder_are_no_pattern(tree):
    for name in ("set [v2]/a.jpg", "set [v2]/deep/b.jpg", "set v/c.jpg"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    assert names(list_sources(["set [v2]/*.jpg"])) == ["set [v2]/a.jpg"]
    assert names(list_sources([f"{tree}/set [v2]/**/*.jpg"])) == [
        *(f"{tree}/set [v2]/a.jpg", f"{tree}/set [v2]/deep/b.jpg")
    ]
    assert matching("set [v2]/a.jpg") == ["set [v2]/a.jpg"]
    assert sorted(matching("set *v*/*.jpg")) == ["set [v2]/a.jpg", "set v/c.jpg"]


def test_a_list_names_a_file_in_each_line(tree):
    Path("list.txt").write_text("\ufeffb.jpg\r\n\r\n  deep/c.jpeg \n", encoding="utf-8")
    assert names(list_sources([], "list.txt")) == ["b.jpg", "deep/c.jpeg"]
    assert names(list_sources(["a.PNG"], "list.txt")) == ["a.PNG", "b.jpg", "deep/c.jpeg"]


@pytest.mark.parametrize(
    ("sources", "listed", "expected"),
    [
        (["*.gif"], None, r"^\*\.gif: the pattern matches no image or video"),
        (["*.txt"], None, r"^\*\.txt: the pattern matches no image or video"),
        (["empty"], None, r"^empty: the folder holds no \.jpg"),
        (["gone.jpg"], None, r"^gone\.jpg: no such file or folder"),
        ([], None, r"^there is nothing to detect in; give images"),
        ([], "b.jpg\nno.jpg\nnor.jpg\n", r"2 of 3 files do not exist, the first is no\.jpg in line 2$"),
        ([], "\n \n", r"list\.txt: is empty"),
        ([], b"\xff\xfe\x00", r"list\.txt: cannot be read: it is not UTF-8 text"),
    ],
)
def test_what_stands_for_nothing_is_named(tree, sources, listed, expected):
    if listed is not None:
        Path("list.txt").write_bytes(listed if isinstance(listed, bytes) else listed.encode())
    with pytest.raises(DataError, match=expected):
        list_sources(sources, None if listed is None else "list.txt")
    with pytest.raises(DataError, match=r"--list gone\.txt: cannot be read: No such file"):
        list_sources([], "gone.txt")


@pytest.mark.parametrize("count", [1, 3, 16])
def test_shards_are_disjoint_and_complete_and_keep_indices_and_picture_names(count):
    paths = [Path(f"{folder}/{name}.jpg") for folder in "ab" for name in ("one", "ONE", "two", "one-2")]
    whole = plan_items(paths, Shard())
    assert [item.index for item in whole] == list(range(8))
    pictures = [item.picture for item in whole]
    assert pictures == ["one", "ONE-2", "two", "one-2-2", "one-3", "ONE-4", "two-2", "one-2-3"]
    shared = [item for number in range(1, count + 1) for item in plan_items(paths, Shard(number, count))]
    assert sorted(shared, key=lambda item: item.index) == whole


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0/16", r"--shard: expected a number from 1 to 16, got 0/16"),
        ("17/16", r"--shard: expected a number from 1 to 16, got 17/16"),
        ("1/0", r"--shard: expected a count of at least 1, got '1/0'"),
        ("3", r"--shard: expected a number and a count such as 3/16, got '3'"),
        ("-1/4", r"--shard: expected a number and a count"),
    ],
)
def test_a_shard_that_does_not_exist_is_refused(text, expected):
    with pytest.raises(DataError, match=expected):
        Shard.parse(text)
    assert str(Shard.parse("3/16")) == "3/16"


def test_images_are_finished_in_groups_and_a_video_alone(monkeypatch):
    monkeypatch.setattr("dh_keras.inference.prediction.sources.CHUNK_IMAGES", 2)
    paths = [Path(name) for name in ("a.jpg", "b.jpg", "c.png", "v.mp4", "w.AVI", "d.jpg")]
    chunks = [[str(item.path) for item in chunk] for chunk in plan_chunks(plan_items(paths, Shard()))]
    assert chunks == [["a.jpg", "b.jpg"], ["c.png"], ["v.mp4"], ["w.AVI"], ["d.jpg"]]
    assert plan_chunks([]) == []
