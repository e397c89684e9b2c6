"""The names of classes in pictures and pages, in letters that a font of this machine has.

matplotlib, which knows where the fonts are, is imported for names with other letters than ASCII only.
"""

import functools

from PIL import ImageFont

from dh_keras.errors import visible


def escape_markdown(text: object) -> str:
    """A name or value as it is, in one line, also in a cell of a Markdown table."""
    escaped = visible(" ".join(str(text).split()))
    for mark in "\\|`*_<>[]$~&":
        escaped = escaped.replace(mark, f"\\{mark}")
    return escaped


def drawable(text: str) -> tuple[str, str | None]:
    r"""A text without the letters that no font has, and the font to write it with.

    Args:
        text: one line.

    Returns:
        The text, in which such letters became \u5706; and the path of a font, None where every font will do.
    """
    letters = frozenset(char for char in text if not char.isascii() and char != "…")
    if not letters:
        return text, None
    path, lacking = _best_font(letters)
    return "".join(_code_point(char) if char in lacking else char for char in text), path


@functools.lru_cache(maxsize=32)
def load_font(path: str | None, size: int) -> ImageFont.FreeTypeFont:
    """A font of some pixels for Pillow; that of `drawable`."""
    return ImageFont.load_default(size=size) if path is None else ImageFont.truetype(path, size)


def _code_point(char: str) -> str:
    return char.encode("ascii", "backslashreplace").decode()


@functools.cache
def _best_font(letters: frozenset[str]) -> tuple[str, frozenset[str]]:
    """The first font that lacks the fewest letters, and those."""
    best = None
    for path in _font_files():
        lacking = _lacking(path, letters)
        if lacking is not None and (best is None or len(lacking) < len(best[1])):
            best = path, lacking
            if not lacking:
                break
    return best


@functools.cache
def _font_files() -> tuple[str, ...]:
    """matplotlib's own font, which is always there, then those of this machine, regular ones first."""
    from matplotlib import get_data_path
    from matplotlib.font_manager import fontManager

    own = f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    # The last resort has a box for every letter there is.
    found = {entry.fname: entry for entry in fontManager.ttflist if "LastResort" not in entry.fname}
    others = sorted(found, key=lambda path: (found[path].style != "normal", found[path].weight != 400, path))
    return own, *(path for path in others if path != own)


def _lacking(path: str, letters: frozenset[str]) -> frozenset[str] | None:
    """Letters that a font has not; None where it cannot write a name with a number either."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
        ImageFont.truetype(path, 12)
    except (OSError, RuntimeError):  # removed, damaged, or a format of pictures
        return None
    if not font.scalable or not all(font.get_char_index(ord(char)) for char in "a0 ."):
        return None
    return frozenset(char for char in letters if not font.get_char_index(ord(char)))
