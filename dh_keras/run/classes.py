"""The classes of a detector, and the file that a run and a SavedModel keep them in."""

import csv
import difflib
import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dh_keras.errors import DataError, one_line, reason_of, visible
from dh_keras.files import is_utf8, write_json

MAX_ID = 2**31 - 1  # TensorFlow's contract for classes; COCO's tools and TFRecords keep no more either
MAX_LETTERS = 40  # of a label


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
        categories = tuple(_read_class(row) for row in json.loads(path.read_text(encoding="utf-8")))
        if not categories:
            raise ValueError("it is empty")
    except PermissionError as error:
        raise DataError(f"{path}: cannot be read: {reason_of(error)}") from error
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f'{path}: is damaged: expected a JSON list of {{"id": 1, "name": "cat"}}: {one_line(error)}'
        ) from error
    return categories


def _read_class(row: dict) -> Category:
    number, name = row["id"], row["name"]
    if type(number) is not int or not -MAX_ID <= number <= MAX_ID:
        raise ValueError(f"the id {number!r:.40} is no whole number of 32 bits")
    if not isinstance(name, str) or not is_utf8(name):
        raise ValueError(f"the name {name!r:.40} is no text")
    return Category(number, name)


def find_classes(text: str, categories: Sequence[Category]) -> tuple[str, ...]:
    """Read names of classes with commas between them; a name with a comma in it stands in quotation marks.

    Raises:
        DataError: naming the first that is none of the categories, and the nearest that is.
    """
    known = [category.name for category in categories]
    names = next(csv.reader(text.splitlines(), skipinitialspace=True), [])
    for name in names:
        if name not in known:
            folded = {one.casefold(): one for one in known}
            near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.0)
            raise DataError(f"there is no class {name!r}; did you mean {folded[near[0]]!r}?")
    if not names:
        raise DataError("expected names of classes with commas between them, such as car,dog")
    return tuple(names)


def class_labels(names: Sequence[str]) -> list[str]:
    r"""Names as tables and pictures show them: short, in one line each, and no two alike.

    Example:
        >>> class_labels(["cell", "cell ", "two\nlines"])
        ['cell', "'cell '", 'two\\nlines']
    """
    labels = [_shorten(visible(name) if name and name == name.strip() else f"'{visible(name)}'") for name in names]
    looks = [unicodedata.normalize("NFC", label) for label in labels]
    count = Counter(looks)
    return [
        label if count[look] == 1 else f"{label} #{number}"
        for number, (label, look) in enumerate(zip(labels, looks, strict=True), start=1)
    ]


def _shorten(label: str) -> str:
    """Cut in the middle: the ends of long names tell more."""
    start = MAX_LETTERS * 2 // 3
    return label if len(label) <= MAX_LETTERS else f"{label[:start]}…{label[start + 1 - MAX_LETTERS :]}"
