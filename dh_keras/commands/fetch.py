"""Download published weights and make a run of them.

Without a name, list them.
"""

import argparse

from dh_keras.commands.parser import CommandParser, any_path, make_main
from dh_keras.errors import DataError


def make_parser() -> CommandParser:
    parser = CommandParser(
        "fetch", __doc__, words={"names": ("[NAME]", "one of those that are listed")}, overrides=False
    )
    parser.add_argument(
        "--output", type=any_path, metavar="RUN", help="run folder to write (default: one in Keras' cache)"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    from dh_keras.pretrained.published import PUBLISHED

    if not args.names:
        for name, one in PUBLISHED.items():
            print(f"{name}: {one.family}; AP {one.measured}, as published; licence: {one.licence}; {one.page}")
        return
    if len(args.names) > 1:
        raise DataError(f"fetch: expected one name, got {' '.join(args.names)}")
    from dh_keras.pretrained.fetch import fetch

    (name,) = args.names
    path = fetch(name, args.output)
    print(f"run folder: {path}")
    print(f"next: dh-keras predict {name if args.output is None else path} PHOTO.jpg --output predictions")


main = make_main(make_parser, run)
