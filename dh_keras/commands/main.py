"""`dh-keras COMMAND ...`: finds the command and calls it. Nothing slow is imported before it is known."""

import ast
import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from dh_keras import __version__

# In the order in which people use them; each is a module beside this one.
COMMANDS = (
    "import-data",
    "inspect-data",
    "train",
    "predict",
    "evaluate",
    "export",
    "serve-client",
    "demo",
    "analyze",
    "analyze-heads",
    "compare",
    "fetch",
    "convert-checkpoint",
    "make-tfrecords",
    "merge-predictions",
    "benchmark",
    "benchmark-data",
)
HELP = """\
usage: dh-keras COMMAND ... | --version

Double-Head R-CNN: train a detector on your photographs, look at it, serve it.

{commands}

dh-keras COMMAND --help shows what a command takes."""


def main(argv: Sequence[str] | None = None) -> None:
    """Call the command that the first word names with the words after it, those of the process when None."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in COMMANDS:
        importlib.import_module(f"dh_keras.commands.{module_name(name)}").main(rest)
    elif name in ("-h", "--help"):
        print(HELP.format(commands="\n".join(f"  {command:<20}{summary(command)}" for command in COMMANDS)))
    elif name == "--version":
        print(f"dh_keras {__version__}")
    else:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        advice = f"did you mean {near[0]}?" if near else "dh-keras --help lists them"
        print(f"error: there is no command {name!r}; {advice}", file=sys.stderr)
        sys.exit(2)


def module_name(command: str) -> str:
    """The module of a command, and its file in scripts/."""
    return command.replace("-", "_")


def summary(command: str) -> str:
    """The first line of a command's docstring, read without importing it."""
    source = Path(__file__).with_name(f"{module_name(command)}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)).splitlines()[0]
