"""Detector.predict: images of all kinds one after the other, few of them in memory, faults at their turn."""

import io
import weakref
from itertools import islice

import numpy as np
import pytest
from inference.color_detector import ColorDetector, scene, write_scene
from inference.prediction.helpers import write_video
from PIL import Image

from dh_keras.errors import DataError
from dh_keras.inference.prediction.video import VideoReader


@pytest.fixture
def detector():
    return ColorDetector()


def place(number):
    """Where the only object of the scene of a number is."""
    return [10 + number, 20, 30 + number, 50]


def draw(number, height=70, width=130):
    return scene(height, width, (0, *place(number)))


@pytest.fixture
def folder(tmp_path):
    """Four photographs, 0.png to 3.png, of which number 2 is a portrait, and a text."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        write_scene(photos / f"{number}.png", *((130, 70) if number == 2 else (70, 130)), (0, *place(number)))
    (photos / "notes.txt").write_text("no image")
    return photos


def test_what_people_have_is_taken_in_one_list_and_comes_in_its_order(detector, folder):
    paths = [folder / f"{number}.png" for number in range(4)]
    data = paths[1].read_bytes()
    stack = np.stack([draw(4), draw(5)])
    with Image.open(paths[0]) as opened, paths[3].open("rb") as file:
        source = [
            *(folder, draw(7), str(paths[1]), data, bytearray(data), io.BytesIO(data), opened, stack),
            *((draw(number) for number in (6, 8)), [paths[2], [file]], str(folder / "[13].png")),
        ]
        results = list(detector.predict(source))
    numbers = [0, 1, 2, 3, 7, 1, 1, 1, 1, 0, 4, 5, 6, 8, 2, 3, 1, 3]
    assert [result.boxes.tolist() for result in results] == [[place(number)] for number in numbers]
    named = {0: 0, 1: 1, 2: 2, 3: 3, 5: 1, 14: 2, 16: 1, 17: 3}
    assert [result.path for result in results] == [
        paths[named[index]] if index in named else None for index in range(len(numbers))
    ]
    for number, result in zip(numbers, results, strict=True):
        np.testing.assert_array_equal(result.image, draw(number, *result.size))


def test_one_image_a_folder_and_a_generator_are_sources_too(detector, folder):
    assert [result.boxes.tolist() for result in detector.predict(draw(3))] == [[place(3)]]
    assert [result.path.name for result in detector.predict(str(folder))] == ["0.png", "1.png", "2.png", "3.png"]
    found = detector.predict(draw(number) for number in range(3))
    assert [result.boxes[0].tolist() for result in found] == [place(0), place(1), place(2)]
    assert list(detector.predict([])) == []
    assert next(detector.predict(folder / "1.png")).above(0.99).shown_above == 0.99


def test_the_results_of_batches_are_those_of_single_images(folder):
    files, pixels = ColorDetector(), ColorDetector()
    one_by_one = [result.boxes.tolist() for result in ColorDetector().predict(folder)]
    assert [result.boxes.tolist() for result in files.predict(folder, batch_size=3)] == one_by_one
    assert files.batches == [3, 1]  # the portrait goes alone
    frames = [draw(number) for number in range(4)] + [draw(4, 90, 90)] + [draw(5), draw(6)]
    found = [result.boxes[0].tolist() for result in pixels.predict(frames, batch_size=3)]
    assert found == [place(number) for number in range(7)]
    assert pixels.batches == [3, 2, 1, 1]  # those of equal size among three
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        files.predict(folder, batch_size=0)


@pytest.mark.parametrize(("batch_size", "most"), [(1, 1), (4, 4)])
def test_of_thousands_of_images_few_are_in_memory(detector, batch_size, most):
    alive, most_alive = weakref.WeakSet(), 0

    class Frame(np.ndarray):
        """An array that can be counted."""

        def __hash__(self):
            return id(self)

    def camera():
        for number in range(60):
            frame = draw(number % 20).view(Frame)
            alive.add(frame)
            yield frame

    count = 0
    for _ in detector.predict(camera(), batch_size=batch_size):
        most_alive = max(most_alive, len(alive))
        count += 1
    assert count == 60
    assert most_alive <= most + 2  # the one that is being made and the one whose result is at hand


def test_files_are_read_only_when_they_are_asked_for(detector, folder):
    taken = []

    def names():
        for number in range(1000):
            taken.append(number)
            yield folder / f"{number % 4}.png"

    results = detector.predict(names())
    assert taken == []
    first = list(islice(results, 3))
    assert len(taken) < 15
    assert len(detector.batches) == 3
    assert all(result.source == result.path for result in first)


def test_what_cannot_be_read_is_raised_at_its_turn_or_left_out(detector, folder):
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:80])
    source = [folder, folder / "gone.png", b"no image", draw(9), folder / "*.gif"]
    for batch_size in (1, 3):
        results = detector.predict(source, batch_size=batch_size)
        assert next(results).path.name == "0.png"
        with pytest.raises(DataError, match=r"1\.png: not a readable JPEG or PNG image, it may be cut off"):
            next(results)
        errors = []
        found = list(detector.predict(source, batch_size=batch_size, on_error=errors.append))
        assert [result.boxes[0].tolist() for result in found] == [place(0), place(2), place(3), place(9)]
        assert [str(error).partition(": ")[0].rpartition("/")[2] for error in errors] == [
            *("1.png", "gone.png", "image bytes", "*.gif")
        ]
        assert all(isinstance(error, DataError) for error in errors)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gone", "gone: no such file or folder"),
        ("photos/*.gif", "the pattern matches no image or video"),
        ("", "the folder holds no .jpg"),
    ],
)
def test_a_single_path_that_is_not_there_is_named_at_once(detector, folder, name, expected):
    with pytest.raises(DataError, match=expected):
        detector.predict(folder.parent / name)


@pytest.mark.parametrize("source", [None, 7, {"image": 1}, [None], [np.zeros((4, 4, 3))], io.StringIO("text")])
def test_what_is_no_image_is_refused(detector, source):
    with pytest.raises(ValueError, match=r"^`image` must be "):
        list(detector.predict(source, on_error=print))


def test_a_film_stands_for_its_frames(detector, folder, tmp_path):
    film = tmp_path / "film.avi"
    write_video(film, [scene(96, 128, (0, 16, 16 + 8 * n, 48, 48 + 8 * n)) for n in range(5)])
    results = list(detector.predict([film, folder / "0.png"], batch_size=2))
    assert [(result.path, result.frame) for result in results] == [
        *((film, number) for number in range(5)),
        (folder / "0.png", None),
    ]
    assert [result.time for result in results[:5]] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    for number, (frame, result) in enumerate(zip(VideoReader(film), results, strict=False)):
        np.testing.assert_array_equal(result.image, frame.data)
        np.testing.assert_allclose(result.boxes[0], (16, 16 + 8 * number, 48, 48 + 8 * number), atol=2)
    film.write_bytes(film.read_bytes()[:300])
    errors = []
    assert len(list(detector.predict([film, folder / "0.png"], on_error=errors.append))) == 1
    assert len(errors) == 1
