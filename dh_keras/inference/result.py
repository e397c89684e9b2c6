"""What a detector returns for an image: the detections, and what people make of them.

Letters: D detections of one image, K classes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dh_keras.errors import DataError, pip_install
from dh_keras.evaluation.image_detections import ImageDetections
from dh_keras.files import new_file
from dh_keras.inference.drawing import draw_detections, save_picture
from dh_keras.inference.photographs import Photograph, decoded, is_path, read_image
from dh_keras.inference.prediction.crops import cut_out
from dh_keras.inference.prediction.image_files import describe_image
from dh_keras.paths import to_path
from dh_keras.run.classes import Category

if TYPE_CHECKING:
    from supervision import Detections

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, eq=False, kw_only=True)
class Result(ImageDetections):
    """Detections of one image, or of a frame of a video.

    Args:
        source: what its pixels come from: the path of its file, its bytes, or the pixels; see `Photograph`.
        size: (height, width) of the upright image in pixels.
        shown_above: `plot` and `save` show what scores more; one for all or one for each of the K classes.
        path: of its file, or its address in the web; None for what came as bytes or pixels.
        frame: index in the video, from 0; None for a photograph.
        time: of the frame, seconds.

    Examples:
        >>> result = detector("photo.jpg").above()
        >>> print(result.categories, result.boxes_xyxy)
        >>> result.save(f"drawn/{result.path.stem}.png")
    """

    source: Path | bytes | np.ndarray = field(repr=False)
    size: tuple[int, int]
    shown_above: float | tuple[float, ...]
    path: Path | None = None
    frame: int | None = None
    time: float | None = None

    @classmethod
    def of(cls, photograph: Photograph, found: ImageDetections, *, shown_above: float | tuple[float, ...]) -> "Result":
        """What was found in a photograph."""
        where = {name: getattr(photograph, name) for name in ("source", "size", "path", "frame", "time")}
        return cls(**vars(found), **where, shown_above=shown_above)

    @property
    def boxes_xyxy(self) -> np.ndarray:
        """float32 [D, 4], the boxes as (x1, y1, x2, y2)."""
        return self.boxes[:, [1, 0, 3, 2]]

    @property
    def image(self) -> np.ndarray:
        """RGB, upright, uint8 [H, W, 3]; of a file it is read again, each time.

        Raises:
            DataError: when the file is not what it was.
        """
        pixels = read_image(self.source) if is_path(self.source) else decoded(self.source, "image bytes")
        if pixels.shape[:2] != self.size:
            raise DataError(f"{self.path}: is another image than the one that was detected in; detect again")
        return pixels

    def above(self, score: float | Sequence[float] | None = None) -> "Result":
        """Only the detections that score more than `score`.

        Args:
            score: one for all or one for each of the K classes; None takes `shown_above`, which is what was best for
                each class on the run's validation images, or 0.5.
        """
        score = self.shown_above if score is None else score
        return replace(super().above(score), shown_above=score if np.isscalar(score) else tuple(score))

    def among(self, known: tuple[Category, ...]) -> "Result":
        """Only the detections of some of the classes, found by their names; they are all that is known then."""
        shown = self.shown_above
        if not np.isscalar(shown):
            by_name = {category.name: score for category, score in zip(self.known, shown, strict=True)}
            shown = tuple(by_name.get(category.name, 0.5) for category in known)
        return replace(super().among(known), shown_above=shown)

    def plot(self) -> np.ndarray:
        """The image with the boxes, names and scores of what is shown.

        Returns:
            RGB, uint8 [F * H, F * W, 3]; F is 1, or for images whose long side has less than 640 pixels the whole
            factor that reaches it.
        """
        return draw_detections(self.image, self, score_threshold=self.shown_above)

    def save(self, path: str | Path) -> Path:
        """Write what `plot` draws, as PNG, JPEG or WebP by the ending of the name; folders above are made.

        Raises:
            DataError: when the file exists, or its ending is another.
            WriteError: when the disk does not take it.
        """
        path = to_path(path)
        if path.suffix.lower() not in PICTURE_SUFFIXES:
            raise DataError(f"{path}: expected a name that ends with {', '.join(PICTURE_SUFFIXES)}")
        with new_file(path, "choose another name") as partial:
            save_picture(self.plot(), partial)
        return path

    def crops(self) -> list[np.ndarray]:
        """D pieces of the image, uint8 [h, w, 3]: every pixel that a box touches."""
        return cut_out(self.image, self.boxes)

    def to_json(self) -> str:
        """An entry of the `predictions.json` that `dh-keras predict` writes, as JSON in one line."""
        return json.dumps(describe_image(self.path, self.size, self, frame=self.frame, time=self.time))

    def to_supervision(self) -> "Detections":
        """What the trackers, slicers, zones and annotators of the supervision library take.

        Returns:
            xyxy float32 [D, 4] in pixels of the image, confidence float32 [D], class_id int64 [D] (class index 0..K-1,
            not a category id), and the names of the classes in data["class_name"].

        Raises:
            DataError: when supervision is not installed.
        """
        try:
            from supervision import Detections
        except ImportError as error:
            raise DataError(f"to_supervision needs supervision; {pip_install('supervision')}") from error
        return Detections(
            xyxy=self.boxes_xyxy,
            confidence=self.scores,
            class_id=self.classes.astype(np.int64),
            data={"class_name": np.array(self.categories, dtype=str)},
        )
