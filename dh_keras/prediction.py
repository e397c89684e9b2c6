"""Detect in many files: one JSON with every detection, one picture per image, and a word about what was not found."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from dh_keras.detector import Detector, Result, read_image
from dh_keras.errors import DataError
from dh_keras.visualize import draw_detections

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
PREDICTIONS_FILE = "predictions.json"


def list_images(sources: Iterable[str | Path]) -> list[Path]:
    """Files as they are given, and the JPEG and PNG files directly in the folders that are given, by name.

    Raises:
        DataError: naming a source that does not exist or a folder without images.
    """
    found: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            inside = sorted(path for path in source.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise DataError(f"{source}: the folder holds no {', '.join(IMAGE_SUFFIXES)} file")
            found += inside
        elif source.is_file():
            found.append(source)
        else:
            raise DataError(f"{source}: no such file or folder")
    return found


def predict_files(detector: Detector, paths: Sequence[Path], output: str | Path, *, score: float) -> list[str]:
    """Detect in files and write `predictions.json` and a PNG picture for each into a new folder.

    Args:
        detector: a loaded detector.
        paths: JPEG or PNG files.
        output: the folder; must be new or empty.
        score: detections that score more than this are drawn and written.

    Returns:
        One line for every file that could not be read; the others are not lost for it.

    Raises:
        DataError: when the output folder exists and is not empty.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output}: exists already and is not overwritten; choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    rows, faults, taken = [], [], set()
    for path in tqdm(paths, unit="image", disable=len(paths) < 2):
        try:
            image = read_image(path)
            result = detector(path)
        except DataError as error:
            faults.append(str(error))
            continue
        Image.fromarray(_draw(detector, image, result, score)).save(output / _free_name(path.stem, taken))
        rows.append(describe_image(path, image, result.above(score)))
        tqdm.write(_sentence(path, result, score))
    (output / PREDICTIONS_FILE).write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    return faults


def _draw(detector: Detector, image: np.ndarray, result: Result, score: float) -> np.ndarray:
    names = [category.name for category in detector.categories]
    classes = detector.class_indices(result)
    return draw_detections(image, result.boxes, result.scores, classes, names, score)


def describe_image(path: Path, image: np.ndarray, result: Result) -> dict[str, Any]:
    """One entry of `predictions.json`, from the file's path, its pixels uint8 [H, W, 3] and what was found."""
    height, width = image.shape[:2]
    return {"file": str(path), "width": width, "height": height, "detections": result.as_dicts()}


def _sentence(path: Path, result: Result, score: float) -> str:
    """What was found, or how close the best came."""
    found = result.above(score)
    if len(found):
        counts = {name: found.categories.count(name) for name in sorted(set(found.categories))}
        return f"{path}: " + ", ".join(f"{count} {name}" for name, count in counts.items())
    best = f"; the best is {result.categories[0]} at {result.scores[0]:.2f}" if len(result) else ""
    return f"{path}: nothing above {score:.2f}{best}"


def _free_name(stem: str, taken: set[str]) -> str:
    """A file name that no earlier image of another folder took."""
    name, number = f"{stem}.png", 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}.png"
    taken.add(name)
    return name
