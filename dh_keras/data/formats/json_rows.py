"""A COCO JSON whose annotations stay text until they are asked for: as objects they take five times the memory."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

_CHUNK = 4096


class JsonRows(Sequence):
    """The values of a JSON list, each made when it is asked for, and anew every time.

    Args:
        texts: of the values; all of them are made once, to see that they can be.

    Attributes:
        all_objects: whether each value is an object.
        keys: those that any of the objects has.

    Raises:
        msgspec.MsgspecError, ValueError, RecursionError: when a text is no JSON.
    """

    def __init__(self, texts: list[msgspec.Raw]) -> None:
        """See the class."""
        self._texts = texts
        self._decode = msgspec.json.Decoder().decode
        self.all_objects, self.keys = True, set()
        for value in self:
            if isinstance(value, dict):
                self.keys.update(value)
            else:
                self.all_objects = False

    def __len__(self) -> int:
        """Return the number of values."""
        return len(self._texts)

    def __getitem__(self, index: int | slice) -> Any:
        """Return a value, or a list of them."""
        texts = self._texts[index]
        return [self._decode(text) for text in texts] if isinstance(index, slice) else self._decode(texts)

    def __iter__(self) -> Iterator[Any]:
        """Make one value after the other."""
        return map(self._decode, self._texts)


def chunks(rows: Sequence[dict]) -> Iterator[list[dict]]:
    """Yield the rows in lists that take little memory."""
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]


def parse_json(data: bytes) -> Any:
    """Parse a file as `json.loads` does; `annotations` that are a list become `JsonRows`.

    Args:
        data: UTF-8, with or without a byte order mark.

    Raises:
        ValueError, RecursionError: those of `json.loads`.
    """
    try:
        return _parse_strictly(memoryview(data).cast("B")[3 if data.startswith(b"\xef\xbb\xbf") else 0 :])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return json.loads(data.decode("utf-8-sig"))  # takes NaN too, and says where a fault is


def _parse_strictly(data: memoryview) -> dict[str, Any]:
    tree: dict[str, Any] = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    for key, text in tree.items():
        if key == "annotations" and memoryview(text)[:1] == b"[":
            tree[key] = JsonRows(msgspec.json.decode(text, type=list[msgspec.Raw]))
        else:
            tree[key] = msgspec.json.decode(text)
    return tree
