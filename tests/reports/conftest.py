"""A generated data set with one fault of each kind, inspected once."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

HEIGHT, WIDTH = 96, 128


@pytest.fixture(autouse=True, scope="module")
def quick_start(quick_graphs):
    """Leave graphs as they are traced."""


def scene(seed, height=HEIGHT, width=WIDTH):
    """Return uint8[height, width, 3] of soft random blobs, like no other seed's."""
    cells = np.random.default_rng(seed).uniform(40, 215, (6, 8, 3)).astype(np.float32)
    return cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)


class Coco:
    """Builds an annotation file and its images."""

    def __init__(self, root, name, categories):
        self.folder, self.path = root / name, root / f"{name}.json"
        self.folder.mkdir()
        rows = [{"id": number, "name": label} for number, label in categories]
        self.tree = {"info": {"year": 2026}, "images": [], "annotations": [], "categories": rows}

    def image(self, name, pixels=None, *, size=None, boxes=((40, 30, 36, 36, 1),), **options):
        """Write a JPEG (or what the options say), add its row and its boxes x, y, w, h, category; return its id."""
        pixels = scene(len(self.tree["images"]) + 1) if pixels is None else pixels
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        image.save(self.folder / name, **({"format": "JPEG", "quality": 95} | options))
        return self.row(name, size or (image.height, image.width), boxes=boxes)

    def row(self, name, size=(HEIGHT, WIDTH), *, boxes=((40, 30, 36, 36, 1),), number=None):
        number = number or len(self.tree["images"]) + 1
        self.tree["images"].append({"id": number, "file_name": name, "height": size[0], "width": size[1]})
        for *bbox, category in boxes:
            self.box(number, bbox, category)
        return number

    def box(self, image, bbox, category=1, **changes):
        number = len(self.tree["annotations"]) + 1
        area = float(bbox[2] * bbox[3]) if len(bbox) == 4 else 0.0
        row = {"id": number, "image_id": image, "category_id": category, "bbox": list(bbox), "area": area, "iscrowd": 0}
        self.tree["annotations"].append(row | changes)
        return number

    def write(self):
        self.path.write_text(json.dumps(self.tree))
        return self


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def shifted(pixels, y, x):
    """The same scene from a little beside: what enters at the border is new."""
    moved = np.roll(pixels, (y, x), axis=(0, 1))
    moved[:y], moved[:, :x] = 90, 90
    return moved


@pytest.fixture(scope="session")
def make_coco():
    return Coco


@pytest.fixture(scope="session")
def faulty(tmp_path_factory):
    """Two splits with one fault of each kind, and the ids of the faulty annotations by name."""
    root = tmp_path_factory.mktemp("faulty")
    train = Coco(root, "train", [(1, "cell"), (2, "<b>blob</b>"), (7, "ghost"), (2, "twin"), (9, "cell")])
    ids = SimpleNamespace()
    add_file_faults(train)
    add_box_faults(train, ids)
    val = Coco(root, "val", [(5, "<b>blob</b>"), (6, "cell"), (8, "only here")])
    val.image("a.jpg", shifted(scene(900), 6, 9), boxes=((40, 30, 36, 36, 5), (4, 4, 30, 30, 6), (80, 50, 33, 33, 8)))
    return SimpleNamespace(train=train.write(), val=val.write(), ids=ids)


def add_file_faults(train):
    train.image("healthy.jpg")
    train.row("missing.jpg")
    train.image("truncated.jpg")
    whole = (train.folder / "truncated.jpg").read_bytes()
    (train.folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    train.row("text.jpg")
    (train.folder / "text.jpg").write_text("not an image")
    train.image("bitmap.jpg", format="BMP", quality=None)
    train.image("really_png.jpg", format="PNG", quality=None)
    train.image("cmyk.jpg", Image.fromarray(scene(50)).convert("CMYK"))
    deep = (scene(51)[..., 0].astype(np.uint16) << 8) + 7
    train.image("deep.png", Image.fromarray(deep), format="PNG", quality=None)
    train.image("turned.jpg", size=(WIDTH, HEIGHT), boxes=((20, 60, 40, 60, 1),), exif=exif(6))
    train.image("stored.jpg", size=(WIDTH, HEIGHT), boxes=((60, 20, 60, 40, 1),), exif=exif(6))
    train.image("resized.jpg", size=(2 * HEIGHT, 2 * WIDTH), boxes=((150, 100, 80, 70, 1),))
    train.image("same_id.jpg")
    train.tree["images"][-1]["id"] = 1
    train.tree["annotations"].pop()
    train.image("empty.jpg", boxes=())
    train.row("healthy.jpg", boxes=())
    train.tree["images"].append({"id": 70, "height": HEIGHT, "width": WIDTH})
    train.image("twin_a.jpg", scene(800))
    train.image("twin_b.jpg", shifted(scene(800), 8, 10))
    train.image("shared.jpg", scene(900))


def add_box_faults(train, ids):
    image = train.image("boxes.jpg", boxes=())
    ids.flat = train.box(image, [30, 30, 0, 20], 2)
    ids.words = train.box(image, ["a", 3], 2)
    ids.outside = train.box(image, [100, 60, 40, 36], 2)
    ids.crowd = train.box(image, [10, 10, 50, 50], 2, iscrowd=1)
    ids.tiny = train.box(image, [20, 70, 3, 12], 2)
    ids.no_image = train.box(999, [1, 1, 20, 20], 1)
    ids.no_category = train.box(image, [1, 1, 20, 20], 99)
    image = train.image("twice.jpg", boxes=())
    ids.twice = train.box(image, [20, 20, 40, 40]), train.box(image, [22, 21, 40, 40])
    ids.two_classes = train.box(image, [80, 50, 40, 38], 2), train.box(image, [81, 50, 40, 39], 1)
    image = train.image("copies.jpg", boxes=())
    ids.copies = train.box(image, [30, 30, 34, 34]), train.box(image, [30, 30, 34, 34])
    image = train.image("numbers.jpg", boxes=())
    ids.number = train.box(image, [4, 4, 33, 33], 1, id=1)
    for _ in range(6):
        train.image(f"many_{len(train.tree['images'])}.jpg", boxes=((4, 4, 35, 34, 1), (80, 50, 36, 38, 1)))
    ids.large = train.box(train.image("large.jpg", boxes=()), [0, 0, 128, 96])
