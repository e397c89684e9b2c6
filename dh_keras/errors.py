"""The error a user can mend: one line that names the file or key, what was expected, and what to do."""

import re
from importlib import metadata
from unicodedata import category

_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, marks of format, halves of characters, ends of lines

_LONGEST = 1600  # characters; a name may have thousands


def visible(text: str) -> str:
    """The same text in one line: line breaks, and characters that move the cursor, become what Python writes."""
    return "".join(repr(char)[1:-1] if category(char) in _UNSEEN else char for char in text)


class UserError(ValueError):
    """Bad input from the person at the keyboard; commands print its one line and exit with status 1."""

    def __init__(self, message: str):
        line = visible(message)
        if len(line) > _LONGEST:  # what is wrong is at the beginning, what to do at the end
            line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
        super().__init__(line)


class ConfigError(UserError):
    """A config key that does not exist, has the wrong type, or cannot be combined with another."""


class DataError(UserError):
    """An image, annotation or run file that is missing, unreadable or inconsistent."""


class ServerError(UserError):
    """A server that cannot be reached, is too slow, does not have the model or gives no useful answer."""


class TrainingError(UserError):
    """Training cannot go on; the last good checkpoint is untouched."""


class WriteError(UserError):
    """A file that the disk does not take; what was there before is untouched."""


class Interrupted(Exception):
    """Training was asked to stop, and has saved everything that is needed to go on.

    Args:
        message: one line that says where it stopped and how to go on.
        status: exit status, 128 + the number of the signal.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def one_line(message: object) -> str:
    """Fold a library's message into one line of at most 200 characters."""
    # Where in TensorFlow it happened helps nobody here.
    text = re.sub(r"\AGraph execution error:.*\n *File [^\n]*\n", "", str(message), flags=re.DOTALL)
    text = re.sub(r"\[\[\{\{.*?\}\}\]\]|\{\{.*?\}\}|\[Op:.*", "", text)
    return " ".join(text.split())[:200]


def reason_of(error: OSError) -> str:
    """What the system says of a file, or the library of another file system."""
    return error.strerror or one_line(error)


def pip_install(extra: str) -> str:
    """What to type to get the libraries of an extra of setup.py, wherever this package was installed from."""
    try:
        requirements = metadata.requires("dh_keras") or []
    except metadata.PackageNotFoundError:  # a checkout that was not installed
        requirements = []
    libraries = [line.partition(";")[0].strip() for line in requirements if line.endswith(f'extra == "{extra}"')]
    return "pip install " + " ".join(f'"{library}"' for library in libraries or [f".[{extra}]"])
