"""The output folder of a prediction: its settings, and the parts that are finished.

A part holds the rows of one chunk of files as JSON lines and appears at once, when they are complete. So a run that was
killed goes on behind its last part, and the result is that of a run that was not.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dh_keras.errors import DataError
from dh_keras.files import (
    CHOOSE_OR_RESUME,
    is_new_folder,
    remove_folder,
    replaced_text,
    require_new_folder,
    write_json,
)
from dh_keras.inference.prediction.sources import Shard
from dh_keras.run.classes import Category
from dh_keras.run.run_folder import BEST_WEIGHTS, CLASSES_FILE, CONFIG_FILE, LAST_WEIGHTS

RESULT_FILES = {"json": "predictions.json", "coco": "coco_results.json", "csv": "predictions.csv"}
SETTINGS_FILE = "settings.json"
PARTS_DIR = "parts"
ERRORS_FILE = "errors.csv"
IMAGES_FILE = "coco_images.json"

_MODEL_FILES = (CONFIG_FILE, CLASSES_FILE, "saved_model.pb", "variables/*", "model.onnx")


@dataclass(frozen=True)
class PredictionSettings:
    """What a prediction is made with; going on after a stop needs the same.

    Args:
        score: detections that score more than this are drawn and written, 0..1; one for all or one for each class.
        batch_size: images that go through the network together.
        shard: the share of the files.
        format: "json", "coco" or "csv".
        annotations: COCO JSON that gives the ids of the format "coco".
        pictures: whether a drawn picture or video is written for each file.
        crops: whether a picture of each object is written.
        classes: names of those that count; without any, all.
        model: the model's folder, for the record.
        overrides: changes to its config.

    Raises:
        DataError: naming the option whose value is out of range.
    """

    score: float | tuple[float, ...] = 0.5
    batch_size: int = 1
    shard: Shard = field(default_factory=Shard)
    format: str = "json"
    annotations: Path | None = None
    pictures: bool = True
    crops: bool = False
    classes: tuple[str, ...] = ()
    model: Path | None = None
    overrides: tuple[str, ...] = ()

    def __post_init__(self):
        if not np.all((np.asarray(self.score) >= 0) & (np.asarray(self.score) <= 1)):
            raise DataError(f"--score: expected a number from 0 to 1, got {self.score}")
        if self.batch_size < 1:
            raise DataError(f"--batch-size: expected at least 1, got {self.batch_size}")
        if self.format not in RESULT_FILES:
            raise DataError(f"--format: expected {', '.join(RESULT_FILES)}, got {self.format!r}")
        if self.annotations is not None and self.format != "coco":
            raise DataError(f"--annotations: gives ids to --format coco only, got --format {self.format}")

    def describe(self, paths: Sequence[Path], categories: Sequence[Category], parts: int) -> dict[str, Any]:
        """Content of `settings.json`.

        Args:
            paths: all files, those of other shards included.
            categories: of the model.
            parts: chunks of this shard.
        """
        return {
            "model": None if self.model is None else str(self.model),
            "model_digest": None if self.model is None else model_digest(self.model),
            "overrides": sorted(self.overrides),
            "score": list(self.score) if isinstance(self.score, tuple) else self.score,
            "batch_size": self.batch_size,
            "format": self.format,
            "annotations": None if self.annotations is None else str(self.annotations),
            "annotations_digest": None if self.annotations is None else file_digest([self.annotations]),
            "pictures": self.pictures,
            # None as in folders from before there were these two.
            "crops": self.crops or None,
            "classes": sorted(self.classes) or None,
            "files": len(paths),
            "files_digest": hashlib.sha256(b"\n".join(os.fsencode(str(path)) for path in paths)).hexdigest(),
            "shard": str(self.shard),
            "parts": parts,
            "categories": [{"id": category.id, "name": category.name} for category in categories],
        }


def model_digest(path: Path) -> str:
    """Digest of the files that a run folder's or SavedModel's detections depend on."""
    files = sorted(file for pattern in _MODEL_FILES for file in path.glob(pattern))
    return file_digest(files + [path / name for name in (BEST_WEIGHTS, LAST_WEIGHTS) if (path / name).is_file()][:1])


def file_digest(paths: Iterable[Path]) -> str:
    """One SHA-256 of several files' contents."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


# How the message about a difference names each setting, and the value it shows.
_NAMES = {
    "model_digest": ("the model", "model"),
    "overrides": ("the overrides", "overrides"),
    "score": ("--score", "score"),
    "batch_size": ("--batch-size", "batch_size"),
    "format": ("--format", "format"),
    "annotations_digest": ("--annotations", "annotations"),
    "pictures": ("pictures", "pictures"),
    "crops": ("--save-crops", "crops"),
    "classes": ("--classes", "classes"),
    "files": ("the number of files", "files"),
    "files_digest": ("the files or their order", "files"),
    "shard": ("--shard", "shard"),
}


def find_difference(one: dict[str, Any], other: dict[str, Any], *, ignore: Sequence[str] = ()) -> str | None:
    """Say which setting differs first between the contents of two `settings.json`, or None."""
    for key, (name, shown) in _NAMES.items():
        if key not in ignore and one.get(key) != other.get(key):
            if one.get(shown) == other.get(shown):
                return f"{name} ({one.get(shown)}, now with other content)"
            return f"{name} ({one.get(shown)}, not {other.get(shown)})"
    return None


class PredictionFolder:
    """An output folder that exists.

    Args:
        path: the folder.
        settings: content of its `settings.json`.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path = path
        self.settings = settings

    @classmethod
    def create(cls, path: Path, settings: dict[str, Any]) -> "PredictionFolder":
        """Make a new folder.

        Raises:
            DataError: when it exists and is not empty; nothing in it is touched.
        """
        require_new_folder(path, CHOOSE_OR_RESUME)
        write_json(path / SETTINGS_FILE, settings)
        return cls(path, settings)

    @classmethod
    def open(cls, path: Path) -> "PredictionFolder":
        """Open a folder that `create` made.

        Raises:
            DataError: when it is not one.
        """
        try:
            settings = json.loads((path / SETTINGS_FILE).read_text(encoding="utf-8"))
            return cls(path, {**settings, "parts": int(settings["parts"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}: not a folder that dh-keras predict began, which holds {SETTINGS_FILE}") from error

    @classmethod
    def resume(cls, path: Path, settings: dict[str, Any]) -> "PredictionFolder":
        """Open a folder to go on with it, or make it where there is none yet.

        Raises:
            DataError: naming the setting that is not the one it was begun with.
        """
        if is_new_folder(path):
            return cls.create(path, settings)
        folder = cls.open(path)
        difference = find_difference(folder.settings, settings)
        if difference:
            raise DataError(
                f"{path}: was begun with another value of {difference}; --resume needs the same settings, "
                "or choose another --output"
            )
        return folder

    @property
    def is_finished(self) -> bool:
        """Whether the result has been written, which a shard leaves to the merging."""
        return (self.path / RESULT_FILES[self.settings["format"]]).is_file()

    def part(self, number: int) -> Path:
        """File of the rows of a chunk."""
        return self.path / PARTS_DIR / f"{number:06d}.jsonl"

    def missing_parts(self) -> list[int]:
        """Chunks that are still to be done."""
        return [number for number in range(self.settings["parts"]) if not self.part(number).is_file()]

    def write_part(self, number: int, rows: Iterable[dict[str, Any]]) -> None:
        """Write the rows of a chunk, which may be made while they are written; the file appears when it is complete."""
        with replaced_text(self.part(number)) as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of all parts, one at a time, in the order of the files."""
        for number in range(self.settings["parts"]):
            with self.part(number).open(encoding="utf-8") as file:
                yield from map(json.loads, file)

    def remove_parts(self) -> None:
        """Remove what the result holds as well."""
        remove_folder(self.path / PARTS_DIR)
