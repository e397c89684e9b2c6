"""What the scripts share: overrides on the command line, and one line instead of a traceback for bad input."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the trailing `key=value` overrides that every script takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config changes, such as train.lr=0.02")
    return parser


def run_script(
    main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> None:
    """Parse and call; an error that the user can mend is printed in one line and ends with status 1."""
    args = parser.parse_intermixed_args(argv)
    # TensorFlow reports the lack of a GPU as an error; on a machine without one that is no news.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2" if Path("/dev/nvidiactl").exists() else "3")
    from dh_keras.errors import UserError

    try:
        main(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
