"""Convert the authors' or MMDetection's weights to a run."""

import argparse

from dh_keras.commands.parser import CommandParser, any_path, make_main


def make_parser() -> CommandParser:
    parser = CommandParser(
        "convert-checkpoint",
        __doc__,
        words={"checkpoint": ("CHECKPOINT", ".pth file of the authors' release or of MMDetection")},
    )
    parser.add_argument("--output", type=any_path, required=True, metavar="RUN", help="run folder to write")
    parser.add_argument(
        "--class-names",
        type=any_path,
        metavar="FILE",
        help="a name per line or a JSON list (default: the file's or COCO's)",
    )
    return parser


def run(args: argparse.Namespace) -> None:
    from dh_keras.pretrained.importer import import_checkpoint

    print(f"checkpoint: {args.checkpoint}")
    written, imported = import_checkpoint(
        args.checkpoint, args.output, class_names=args.class_names, overrides=args.overrides
    )
    print(imported.summary())
    print(f"written: {written.path}")
    print(f"next: dh-keras predict {written.path} PHOTO.jpg --output predictions")


main = make_main(make_parser, run)
