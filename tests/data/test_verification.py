"""Every image is decoded before training, or as many as the config asks for."""

import pytest

from dh_keras.data import verification
from dh_keras.data.verification import verify_images
from dh_keras.errors import DataError


@pytest.fixture
def damaged(coco, make):
    """Five images, of which the fourth has a header and an end and can still not be decoded."""
    for number in range(5):
        data = make.encode(make.pixels(40, 60, number), "PNG")
        coco.image(40, 60, data=data[:200] + bytes(50) + data[250:] if number == 3 else data, id=number + 1)
        coco.box(number + 1, [1, 2, 30, 20], category_id=1)
    return coco.load()


@pytest.mark.parametrize("how", ["auto", "full"])
def test_a_file_that_only_looks_whole_is_named_before_training(damaged, how):
    with pytest.raises(DataError, match=rf"image {damaged.paths[3]}: cannot be decoded \(.*\); replace it") as error:
        verify_images(damaged, how)
    assert "\n" not in str(error.value)


def test_headers_alone_decode_nothing(damaged, monkeypatch):
    monkeypatch.setattr(verification, "image_dataset", None)
    verify_images(damaged, "headers")


def test_each_worker_decodes_its_share(damaged):
    verify_images(damaged, "full", shard=(0, 2))  # 0, 2 and 4
    with pytest.raises(DataError, match="cannot be decoded"):
        verify_images(damaged, "full", shard=(1, 2))
    verify_images(damaged, "full", shard=(9, 10))  # more workers than images


def test_what_would_take_long_is_decoded_on_request_only(damaged, monkeypatch, capsys):
    monkeypatch.setattr(verification, "_TIMED", 2)
    monkeypatch.setattr(verification, "_SECONDS", 0.0)
    verify_images(damaged, "auto")
    told = capsys.readouterr().out
    assert told.startswith(
        f"note: 5 images of {damaged.annotations_path} are checked by their headers only; data.verify="
    )
    with pytest.raises(DataError, match="cannot be decoded"):
        verify_images(damaged, "full")
