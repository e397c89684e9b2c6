"""Join the folders that predict --shard wrote."""

import argparse

from dh_keras.commands.parser import CommandParser, any_path, make_main
from dh_keras.paths import to_path


def make_parser() -> CommandParser:
    parser = CommandParser(
        "merge-predictions",
        __doc__,
        words={"shards": ("DIR...", "outputs of predict --shard, all of them")},
        overrides=False,
    )
    parser.add_argument("--output", type=any_path, required=True, help="new folder for the predictions")
    return parser


def run(args: argparse.Namespace) -> None:
    from dh_keras.inference.prediction.merge import merge_predictions

    summary = merge_predictions([to_path(shard) for shard in args.shards], args.output)
    print(f"found: {summary}; {len(summary.errors)} file(s) could not be read")
    print(f"written: {args.output}; the pictures are in the folders of the shards")


main = make_main(make_parser, run)
