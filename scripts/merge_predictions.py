"""Join the folders that predict.py --shard wrote into one result."""

import argparse
from pathlib import Path

from dh_keras.commands.parser import make_parser, run_script
from dh_keras.errors import DataError


def parse() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, positionals=("shards",))
    parser.add_argument("--output", type=Path, required=True, help="new folder for the predictions")
    return parser


def main(args: argparse.Namespace) -> None:
    if args.overrides:
        raise DataError(f"{args.overrides[0]}: the shards' settings are fixed; overrides are for predict.py")
    from dh_keras.inference.prediction.merge import merge_predictions

    summary = merge_predictions([Path(shard) for shard in args.shards], args.output)
    print(f"found: {summary}; {len(summary.errors)} file(s) could not be read")
    print(f"written: {args.output}; the pictures are in the folders of the shards")


if __name__ == "__main__":
    run_script(main, parse())
