"""What the commands share: overrides among the arguments, and one line instead of a traceback for bad input."""

import argparse
import atexit
import dataclasses
import gc
import io
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from dh_keras import quiet_tensorflow, require_tensorflow_backend
from dh_keras.commands.quick_start import leave_out_what_commands_do_not_need
from dh_keras.config.schema import Config
from dh_keras.errors import DataError, Interrupted, UserError, visible
from dh_keras.paths import to_path
from dh_keras.pretrained.published import PUBLISHED

MODEL = "run folder, folder that export wrote, or name of published weights (fetch)"
OVERRIDE = re.compile(rf"({'|'.join(field.name for field in dataclasses.fields(Config))})(\.[\w.]*)?=")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, []) else super()._get_help_string(action)


class CommandParser(argparse.ArgumentParser):
    """A parser for named words, options, and `key=value` overrides anywhere among them.

    Args:
        name: the command, as it is typed.
        description: what it does.
        words: the positional arguments in their order, each with how the usage shows it and what it is: `MODEL` is
            one word, `DIR...` and `MODEL [MODEL2]` are all that are left and at least one, `[SOURCE...]` may also be
            none.
        overrides: whether the command reads a config that can be changed.
    """

    def __init__(
        self,
        name: str,
        description: str,
        *,
        words: Mapping[str, tuple[str, str]] | None = None,
        overrides: bool = True,
    ):
        self.words = {word: shown for word, (shown, _) in (words or {}).items()}
        self.overrides = overrides
        shown = [*self.words.values(), "[options]", *(["[key=value ...]"] if overrides else [])]
        super().__init__(
            prog=f"dh-keras {name}",
            description=" ".join([description, *(f"{shown}: {meaning}." for shown, meaning in (words or {}).values())]),
            usage=f"%(prog)s {' '.join(shown)}",
            formatter_class=_HelpFormatter,
        )
        changes = {"metavar": "key=value", "help": "config changes, such as train.lr=0.02"}
        self.add_argument("given", nargs="*", **(changes if overrides else {"help": argparse.SUPPRESS}))

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse, the words of the process when None; the result has the options, the named words and `overrides`."""
        args = self.parse_intermixed_args(argv)
        # An option that takes several values, such as --verify, swallows the overrides that follow it.
        lists = [values for values in vars(args).values() if isinstance(values, list)]
        args.overrides = [str(word) for values in lists for word in values if _is_override(word)]
        for values in lists:
            values[:] = [word for word in values if not _is_override(word)]
        if args.overrides and not self.overrides:
            self.error(f"this command reads no config and takes no overrides, got {args.overrides[0]!r}")
        self._name_words(args)
        return args

    def _name_words(self, args: argparse.Namespace) -> None:
        left = args.given
        del args.given
        for name, shown in self.words.items():
            if not left and not shown.startswith("["):
                self.error(f"{name} is missing")
            if shown.endswith(("...", "]")):
                setattr(args, name, left)
                left = []
            else:
                setattr(args, name, left.pop(0))
        if left:
            advice = "; config changes look like train.lr=0.02" if self.overrides else ""
            self.error(f"unexpected argument {left[0]!r}{advice}")


def any_path(text: str) -> Path:
    """Type of an argument that is a path of the disk or of another file system."""
    try:
        return to_path(text)
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


_DATA_OPTIONS = ("train_annotations", "train_images", "val_annotations", "val_images")


def add_data_options(parser: CommandParser) -> None:
    """The options of a command that trains which say where its data is."""
    for name in _DATA_OPTIONS:
        kind = "COCO JSON file, or what another tool wrote" if name.endswith("annotations") else "folder of photographs"
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="PATH", help=kind)
    parser.add_argument(
        "--tfrecords", metavar="PATTERN", help="TFRecord files, in the place of --train-annotations and --train-images"
    )


def given_data(args: argparse.Namespace) -> dict[str, str]:
    """What was typed for `add_data_options`, by the keys of the config."""
    given = {f"data.{name}": getattr(args, name) for name in _DATA_OPTIONS} | {"data.train_tfrecords": args.tfrecords}
    return {key: text for key, text in given.items() if text}


def require_paths(*paths: str | Path | None) -> None:
    """See that what was typed is there, before TensorFlow is imported for it; None was not typed.

    The names of published weights count as there.

    Raises:
        DataError: naming the first that is not.
    """
    for path in paths:
        if path is not None and str(path) not in PUBLISHED and not to_path(path).exists():
            raise DataError(f"{path}: no such file or folder")


def _is_override(word: object) -> bool:
    return OVERRIDE.match(str(word)) is not None and not os.path.exists(str(word))


def run_command(
    parser: CommandParser, run: Callable[[argparse.Namespace], None], argv: Sequence[str] | None = None
) -> None:
    """Parse and call; an error that the user can mend is printed in one line and ends with status 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # no name of a class or a file ends a run
            stream.reconfigure(errors="backslashreplace")
    args = parser.parse(argv)
    quiet_tensorflow()
    leave_out_what_commands_do_not_need()
    # What imports and traces make stays: looking for garbage among it, above all when the process ends, is in vain.
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)
    try:
        require_tensorflow_backend()
    except ImportError as error:
        sys.exit(f"error: {error}")
    try:
        run(args)
        print(end="", flush=True)  # here, not when Python ends
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _is_closed_pipe(stream)]
        if not closed:
            raise
        for stream in closed:  # Python writes what is left when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except PermissionError as error:  # also from a look at what lies in a folder that is closed to this user
        if error.filename is None:
            raise
        print(f"error: {visible(str(error.filename))}: {error.strerror}; use what this user may", file=sys.stderr)
        sys.exit(1)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.status)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # where TensorFlow traces a function, of a class of its own
        if "No module named 'official" not in str(error):
            raise
        print('error: this needs the Model Garden: pip install "tf-models-official>=2.20,<2.21"', file=sys.stderr)
        sys.exit(1)


def _is_closed_pipe(stream: TextIO) -> bool:
    """Whether nobody reads what is written to a stream any more, as behind `| head`."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def make_main(
    make_parser: Callable[[], CommandParser], run: Callable[[argparse.Namespace], None]
) -> Callable[[Sequence[str] | None], None]:
    """The `main` of a command: takes the words that are typed after its name, those of the process when None."""
    return lambda argv=None: run_command(make_parser(), run, argv)
