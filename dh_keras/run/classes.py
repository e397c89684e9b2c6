"""The classes of a detector, and the file that a run and a SavedModel keep them in."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dh_keras.errors import DataError
from dh_keras.files import write_json


@dataclass(frozen=True)
class Category:
    """A class of objects: the id of the annotation file and the name."""

    id: int
    name: str


def write_classes(path: Path, categories: Sequence[Category]) -> None:
    """Write category ids and names as JSON, in class order."""
    rows = [{"id": category.id, "name": category.name} for category in categories]
    write_json(path, rows)


def read_classes(path: Path) -> tuple[Category, ...]:
    """Read what `write_classes` wrote.

    Raises:
        DataError: when the file is not a list of ids and names.
    """
    try:
        return tuple(Category(int(row["id"]), str(row["name"])) for row in json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f'{path}: expected a JSON list of {{"id": 1, "name": "cat"}}: {error}') from error
