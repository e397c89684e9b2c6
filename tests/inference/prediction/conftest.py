"""One detector and a few files for all tests of this folder."""

from pathlib import Path

import numpy as np
import pytest
from inference.prediction.helpers import write_video
from PIL import Image

from dh_keras.inference.detector import Detector


@pytest.fixture(autouse=True, scope="module")
def quick_start(quick_graphs):
    """Leave graphs as they are traced."""


@pytest.fixture(scope="session")
def detector(tiny_run):
    return Detector.load(tiny_run)


@pytest.fixture(scope="session")
def images(tiny_shapes, tmp_path_factory):
    """Seven JPEG and PNG files of three sizes, one of them turned by its EXIF tag, and a file that is no image."""
    folder = tmp_path_factory.mktemp("images")
    sources = sorted(Path(tiny_shapes.train_images).iterdir())
    sizes = [(150, 120), (120, 150), (150, 120), (151, 121), (150, 120), (90, 200), (120, 150)]
    for number, (source, size) in enumerate(zip(sources, sizes, strict=False)):
        image = Image.open(source).convert("RGB").resize(size)
        if number == 4:
            image.save(folder / f"{number}.png")
        else:
            exif = Image.Exif()
            exif[0x0112] = 6 if number == 6 else 1
            image.save(folder / f"{number}.jpg", quality=95, exif=exif)
    (folder / "3-bad.jpg").write_bytes((folder / "3.jpg").read_bytes()[:900])
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def video(images, tmp_path_factory):
    """Five frames of 150 x 120 pixels at 10 frames a second."""
    path = tmp_path_factory.mktemp("videos") / "clip.avi"
    write_video(path, [np.asarray(Image.open(images[index]).convert("RGB")) for index in (0, 2, 0, 2, 0)])
    return path
