"""Show what a model finds, in a page in the browser.

The page is served on this machine, to this machine only.
"""

import argparse

from dh_keras.commands.parser import MODEL, CommandParser, make_main, require_paths
from dh_keras.paths import to_path


def make_parser() -> CommandParser:
    parser = CommandParser("demo", __doc__, words={"model": ("MODEL", MODEL)})
    parser.add_argument("--port", type=int, default=7860, help="TCP port of the page, on 127.0.0.1 only")
    parser.add_argument("--score", type=float, default=0.5, help="where the slider for the score starts")
    return parser


def run(args: argparse.Namespace) -> None:
    require_paths(args.model)
    from dh_keras.serving.demo import run_demo

    run_demo(to_path(args.model), args.overrides, port=args.port, score=args.score)


main = make_main(make_parser, run)
