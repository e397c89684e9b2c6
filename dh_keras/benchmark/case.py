"""What a training step is measured on: the sizes, and seeded arrays of them; without TensorFlow."""

from dataclasses import asdict, dataclass

import numpy as np

CLASSES = 80


@dataclass(frozen=True)
class Case:
    """One measured training step.

    Args:
        height, width: of the images, in pixels.
        batch: images.
        rois: sampled per image.
        boxes: ground truth per image.
        precision: "float32", "mixed_bfloat16" or "mixed_float16".
        recompute: see `DoubleHeadRCNN`.
    """

    height: int
    width: int
    batch: int = 1
    rois: int = 512
    boxes: int = 20
    precision: str = "float32"
    recompute: bool = False

    def to_dict(self) -> dict:
        """For JSON."""
        return asdict(self)

    @property
    def title(self) -> str:
        """A line that names it."""
        text = f"{self.height}x{self.width}, batch {self.batch}, {self.rois} RoIs, {self.boxes} boxes, {self.precision}"
        return text + (", recompute" if self.recompute else "")


def make_images(*, height: int, width: int, batch: int) -> np.ndarray:
    """Seeded noise without padding: uint8 [batch, height, width, 3]."""
    return np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), np.uint8)


def make_ground_truth(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Seeded boxes of a twelfth to a third of the image's sides, float32 [B, G, 4] in pixels, and their classes below
    `CLASSES`, int32 [B, G].
    """
    random = np.random.default_rng(0)
    sides = np.array([case.height, case.width])
    size = random.uniform(1 / 12, 1 / 3, (case.batch, case.boxes, 2))
    top_left = random.uniform(0, 1, size.shape) * (1 - size)
    boxes = np.concatenate([top_left * sides, (top_left + size) * sides], axis=-1).astype(np.float32)
    return boxes, random.integers(0, CLASSES, (case.batch, case.boxes)).astype(np.int32)
