"""Convert a checkpoint of the paper authors' release or of MMDetection to a run folder."""

import argparse
from pathlib import Path

from dh_keras.commands.parser import make_parser, run_script


def parse() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, positionals=("checkpoint",))
    parser.add_argument("--output", type=Path, required=True, metavar="RUN", help="run folder to write")
    parser.add_argument(
        "--class-names",
        type=Path,
        metavar="FILE",
        help="a name per line or a JSON list (default: the file's or COCO's)",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    from dh_keras.pretrained.importer import import_checkpoint

    print(f"checkpoint: {args.checkpoint}")
    run, imported = import_checkpoint(
        args.checkpoint, args.output, class_names=args.class_names, overrides=args.overrides
    )
    print(imported.summary())
    print(f"written: {run.path}")
    print(f"next: python scripts/predict.py {run.path} PHOTO.jpg --output predictions")


if __name__ == "__main__":
    run_script(main, parse())
