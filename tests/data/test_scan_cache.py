"""Headers of image files are read once and then known, until a file changes; whatever happens to what keeps them."""

import os
import threading

import numpy as np
import pytest

from dh_keras.data import images
from dh_keras.data.formats.coco import load_coco
from dh_keras.data.scan_cache import cache_of
from dh_keras.errors import DataError
from dh_keras.paths import open_binary


@pytest.fixture
def opened(monkeypatch):
    """Names of the image files that were opened since the last `clear`."""
    names, lock = [], threading.Lock()

    def counting_open(path, **options):
        with lock:
            names.append(os.path.basename(path))
        return open_binary(path, **options)

    monkeypatch.setattr(images, "open_binary", counting_open)
    return names


@pytest.fixture
def rotated(coco, make):
    """Three images of other sizes, the second to be turned."""
    coco.image(40, 60)
    jpeg = make.encode(make.pixels(30, 50))
    coco.image(50, 30, data=make.with_segments(jpeg, make.exif(6)))
    coco.image(20, 70)
    coco.box(2, [1, 2, 10, 20])
    return coco


def test_the_second_start_opens_no_image_and_knows_the_same(rotated, opened):
    first = rotated.load()
    assert sorted(opened) == ["1.jpg", "2.jpg", "3.jpg"]
    opened.clear()
    second = rotated.load()
    assert opened == []
    assert second.sizes.tolist() == first.sizes.tolist() == [[40, 60], [50, 30], [20, 70]]
    assert second.orientations.tolist() == first.orientations.tolist() == [1, 6, 1]


def test_only_what_is_new_or_changed_is_opened_again(rotated, opened, make):
    rotated.load()
    path = rotated.images_dir / "1.jpg"
    before = path.stat()
    path.write_bytes(make.encode(make.pixels(44, 66)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # another size in bytes tells
    rotated.tree["images"][0].update(height=44, width=66)
    os.utime(rotated.images_dir / "3.jpg", ns=(1, 1))  # another time tells
    rotated.image(24, 24)
    opened.clear()
    dataset = rotated.load()
    assert sorted(opened) == ["1.jpg", "3.jpg", "4.jpg"]
    assert dataset.sizes.tolist() == [[44, 66], [50, 30], [20, 70], [24, 24]]
    opened.clear()
    rotated.load()
    assert opened == []


def test_a_known_file_is_still_compared_with_its_annotation(rotated, opened):
    rotated.load()
    opened.clear()
    rotated.tree["images"][1].update(height=30, width=50)  # drawn on the pixels as stored
    assert rotated.load().orientations.tolist() == [1, 1, 1]
    rotated.tree["images"][2].update(height=21)
    with pytest.raises(DataError, match=r"3\.jpg: the file is 70x20 but its annotation says 70x21"):
        rotated.load()
    assert opened == []


def test_a_bad_file_is_named_at_every_start_and_the_good_ones_are_known(rotated, opened):
    (rotated.images_dir / "2.jpg").write_bytes(b"no image")
    for expected in (["1.jpg", "2.jpg", "3.jpg"], ["2.jpg"]):
        opened.clear()
        with pytest.raises(DataError, match=r"2\.jpg: not an image"):
            rotated.load()
        assert sorted(opened) == expected


def test_the_images_may_be_mounted_elsewhere(rotated, opened, tmp_path):
    rotated.load()
    rotated.images_dir.rename(tmp_path / "elsewhere")
    opened.clear()
    dataset = load_coco(rotated.annotations_path, tmp_path / "elsewhere")
    assert opened == []
    assert dataset.orientations.tolist() == [1, 6, 1]


def damaged(path):
    """What a failing disk, another program or another version may leave."""
    whole = path.read_bytes()
    place = whole.index(b"1.jpg")
    yield b""
    yield whole[: len(whole) // 2]
    yield whole[:place] + b"2" + whole[place + 1 :]  # one byte, which the archive's checksum tells
    yield b"\x80\x04." + whole
    with np.load(path) as archive:
        arrays = dict(archive)
    for changes in (
        {"version": 0},
        {"headers": arrays["headers"][:2]},
        {"headers": arrays["headers"] * 0},
        {"stamps": arrays["stamps"].astype(float)},
        {"names": np.array(["1.jpg"], object)},
    ):
        np.savez(path, **(arrays | changes))
        yield path.read_bytes()


def test_a_damaged_cache_is_ignored_and_written_again(rotated, opened):
    expected = rotated.load()
    cache = cache_of(rotated.annotations_path)
    assert cache == rotated.annotations_path.parent / ".instances.json.images.npz"
    for content in list(damaged(cache)):
        cache.write_bytes(content)
        opened.clear()
        dataset = rotated.load()
        assert sorted(opened) == ["1.jpg", "2.jpg", "3.jpg"], content
        assert dataset.sizes.tolist() == expected.sizes.tolist()
        opened.clear()
        rotated.load()
        assert opened == []


def test_where_nothing_can_be_written_the_images_are_opened(rotated, opened, small_files):
    rotated.write()
    small_files()
    for _ in range(2):
        opened.clear()
        dataset = load_coco(rotated.annotations_path, rotated.images_dir)
        assert sorted(opened) == ["1.jpg", "2.jpg", "3.jpg"]
        assert dataset.orientations.tolist() == [1, 6, 1]
    assert sorted(path.name for path in rotated.annotations_path.parent.iterdir()) == ["images", "instances.json"]
