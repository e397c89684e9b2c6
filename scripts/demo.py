"""Serve a page on this machine that shows what a run folder or a SavedModel finds in a photograph."""

import argparse
from pathlib import Path

from dh_keras.commands.parser import make_parser, run_script


def parse() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, positionals=("model",))
    parser.add_argument("--port", type=int, default=7860, help="TCP port of the page, on 127.0.0.1 only")
    parser.add_argument("--score", type=float, default=0.5, help="where the slider for the score starts")
    return parser


def main(args: argparse.Namespace) -> None:
    from dh_keras.serving.demo import run_demo

    run_demo(Path(args.model), args.overrides, port=args.port, score=args.score)


if __name__ == "__main__":
    run_script(main, parse())
