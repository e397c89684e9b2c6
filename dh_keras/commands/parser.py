"""What the scripts share: overrides on the command line, and one line instead of a traceback for bad input."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

OVERRIDE = re.compile(r"[a-z][\w.]*=")
# Positional arguments that take one word or more, in brackets also none, and how the usage shows them.
SEVERAL = {
    "images": "IMAGE_OR_DIR...",
    "models": "MODEL [MODEL2]",
    "shards": "DIR...",
    "sources": "[SOURCE...]",
}


class ScriptParser(argparse.ArgumentParser):
    """A parser for fixed positional arguments, options, and `key=value` overrides anywhere among them.

    Args:
        description: what the script does.
        positionals: names of the positional arguments; those of `SEVERAL` take one or more.
    """

    def __init__(self, description: str, positionals: Sequence[str]):
        shown = " ".join(SEVERAL.get(name, name.upper()) for name in positionals)
        super().__init__(
            description=description,
            usage=f"%(prog)s {shown} [options] [key=value ...]".replace("  ", " "),
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        self.positionals = tuple(positionals)
        self.add_argument("words", nargs="*", metavar="key=value", help="config changes, such as train.lr=0.02")

    def parse_words(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse, and sort the words into `positionals` and `overrides`."""
        args = self.parse_intermixed_args(argv)
        # An option that takes several values, such as --verify, swallows the overrides that follow it.
        lists = [values for values in vars(args).values() if isinstance(values, list)]
        args.overrides = [str(word) for values in lists for word in values if _is_override(word)]
        for values in lists:
            values[:] = [word for word in values if not _is_override(word)]
        words = args.words
        for name in self.positionals:
            if not words and not SEVERAL.get(name, "").startswith("["):
                self.error(f"{name} is missing")
            if name in SEVERAL:
                setattr(args, name, words)
                words = []
            else:
                setattr(args, name, words.pop(0))
        if words:
            self.error(f"unexpected argument {words[0]!r}; config changes look like train.lr=0.02")
        return args


def _is_override(word: object) -> bool:
    return OVERRIDE.match(str(word)) is not None and not Path(str(word)).exists()


def make_parser(description: str, *, positionals: Sequence[str] = ()) -> ScriptParser:
    """See `ScriptParser`."""
    return ScriptParser(description, positionals)


def run_script(
    main: Callable[[argparse.Namespace], None], parser: ScriptParser, argv: Sequence[str] | None = None
) -> None:
    """Parse and call; an error that the user can mend is printed in one line and ends with status 1."""
    args = parser.parse_words(argv)
    # TensorFlow reports the lack of a GPU as an error; on a machine without one that is no news.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2" if Path("/dev/nvidiactl").exists() else "3")
    from dh_keras import require_tensorflow_backend
    from dh_keras.errors import Interrupted, UserError

    try:
        require_tensorflow_backend()
    except ImportError as error:
        sys.exit(f"error: {error}")
    try:
        main(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.status)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
