"""XML as elements that know the line on which they begin, which Python's own reader forgets."""

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from dh_keras.data.formats.foreign.labelled import Labelled
from dh_keras.errors import one_line, reason_of


def read_xml(path: Path) -> tuple[Element, dict[Element, int]]:
    """Read a file.

    Returns:
        The root, and the line of every element.

    Raises:
        ValueError: one line that says what is wrong with the file, after its name.
    """
    builder, lines = TreeBuilder(), {}
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def start(tag: str, attributes: dict[str, str]) -> None:
        lines[builder.start(tag, attributes)] = parser.CurrentLineNumber

    parser.StartElementHandler, parser.EndElementHandler = start, builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(path.read_bytes(), True)
        return builder.close(), lines
    except expat.ExpatError as error:
        raise ValueError(f"line {error.lineno}: no XML: {expat.ErrorString(error.code)}") from error
    except OSError as error:
        raise ValueError(f"cannot be read: {reason_of(error)}") from error
    except (LookupError, ValueError) as error:  # an encoding that is not known
        raise ValueError(f"cannot be read: {one_line(error)}") from error


def read_each(found: Labelled, files: list[Path]) -> Iterator[tuple[Path, Element, dict[Element, int]]]:
    """Yield every file with what `read_xml` returns of it; those that it cannot read become faults."""
    for path in files:
        try:
            root, lines = read_xml(path)
        except ValueError as error:
            found.fault(path, None, str(error))
            continue
        yield path, root, lines


def whole_size(width: str | None, height: str | None) -> tuple[int, int] | None:
    """Return (height, width) of what an annotation says; None when it says nothing, or zeros as some tools do.

    Raises:
        ValueError: when it is anything else.
    """
    size = tuple(float(side or 0) for side in (height, width))
    if not all(0 <= side < 2**31 and side.is_integer() for side in size):
        raise ValueError(f"{size}")
    return tuple(map(int, size)) if all(size) else None
