"""The score from which a class is worth showing: where its F1 was best on the validation images of the run."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from dh_keras.errors import DataError, one_line
from dh_keras.run.classes import Category

CLASSES_TABLE = "per_class.csv"
DEFAULT_SCORE = 0.5


def read_best_scores(folder: Path) -> dict[int, float]:
    """Read what `dh-keras analyze` wrote into a run.

    Returns:
        {category id: score}, a little less than the one of the best F1, so that who scores just as much is shown;
        without the classes of which nothing was found. Empty for a run that was never analyzed.

    Raises:
        DataError: when the table is damaged.
    """
    path = folder / CLASSES_TABLE
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [(int(row["category_id"]), row["score"]) for row in csv.DictReader(file)]
        scores = {number: math.floor(1000 * float(score)) / 1000 for number, score in rows if score}
    except (csv.Error, KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: is damaged: {one_line(error)}; remove it, or write it again by analyze") from error
    if not all(0 <= score <= 1 for score in scores.values()):
        raise DataError(f"{path}: is damaged: expected scores from 0 to 1; remove it, or write it again by analyze")
    return scores


def scores_of(categories: Sequence[Category], best: Mapping[int, float]) -> tuple[float, ...]:
    """The score of each class; 0.5 where nothing better is known."""
    return tuple(best.get(category.id, DEFAULT_SCORE) for category in categories)
