"""Small COCO folders made on the fly, and JPEG and EXIF bytes written by hand."""

import io
import json
import struct

import numpy as np
import pytest
from PIL import Image

from dh_keras.data.formats.coco import load_coco


@pytest.fixture(autouse=True, scope="module")
def quick_start(quick_graphs):
    """Leave graphs as they are traced."""


def smooth_pixels(height, width, seed=0):
    """Return uint8[height, width, 3] that is different in every corner and channel, and compresses well."""
    y, x = np.mgrid[0:height, 0:width]
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    channels = [128 + 60 * np.sin(x / 9 + p) + 60 * np.cos(y / 13 + 2 * p) for p in phase]
    pixels = np.stack(channels, axis=-1)
    pixels[: height // 3, : width // 3] = (230, 30, 60)
    return pixels.clip(0, 255).astype(np.uint8)


def encode(image, kind="JPEG", **options):
    """Return the file bytes of an array or a Pillow image."""
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **({"quality": 95} | options if kind == "JPEG" else options))
    return buffer.getvalue()


def exif_segment(orientation, order="<", kind=3, before=0):
    """Return a JPEG APP1 segment whose only useful tag is the orientation, after `before` other entries."""
    value = struct.pack(order + ("HH" if kind == 3 else "I"), *((orientation, 0) if kind == 3 else (orientation,)))
    other = b"".join(struct.pack(f"{order}HHII", 0x0100 + i, 4, 1, 7) for i in range(before))
    entry = struct.pack(f"{order}HHI", 0x0112, kind, 1) + value
    directory = struct.pack(f"{order}H", before + 1) + other + entry + bytes(4)
    tiff = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8) + directory
    return b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff


def with_segments(jpeg, *segments):
    """Insert segments right after the start-of-image marker."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


class CocoFolder:
    """Builds an annotation file and its images; `tree` may be changed at will before `load`."""

    def __init__(self, root):
        self.images_dir = root / "images"
        self.annotations_path = root / "instances.json"
        self.images_dir.mkdir()
        categories = [{"id": 3, "name": "cat", "supercategory": "animal"}, {"id": 1, "name": "dog"}]
        self.tree = {"images": [], "annotations": [], "categories": categories}

    def image(self, height, width, *, name=None, data=None, **changes):
        number = len(self.tree["images"]) + 1
        row = {"id": number, "file_name": name or f"{number}.jpg", "height": height, "width": width} | changes
        path = self.images_dir / row["file_name"]
        path.write_bytes(encode(smooth_pixels(height, width, number)) if data is None else data)
        self.tree["images"].append(row)
        return path

    def box(self, image_id, bbox, category_id=3, **changes):
        row = {
            "id": len(self.tree["annotations"]) + 1,
            "image_id": image_id,
            "category_id": category_id,
            "bbox": bbox,
            "area": bbox[2] * bbox[3] if len(bbox) == 4 and all(isinstance(v, float | int) for v in bbox) else 1.0,
            "iscrowd": 0,
        }
        self.tree["annotations"].append(row | changes)

    def write(self):
        self.annotations_path.write_text(json.dumps(self.tree))

    def load(self, **options):
        self.write()
        return load_coco(self.annotations_path, self.images_dir, **options)


@pytest.fixture
def coco(tmp_path):
    return CocoFolder(tmp_path)


@pytest.fixture
def make():
    """The builders above, by name."""

    class Builders:
        pixels = staticmethod(smooth_pixels)
        encode = staticmethod(encode)
        exif = staticmethod(exif_segment)
        with_segments = staticmethod(with_segments)

    return Builders
