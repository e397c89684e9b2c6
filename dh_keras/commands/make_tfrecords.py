"""Write annotations and images as TFRecord files.

The files have the Model Garden's detection schema.
"""

import argparse

from dh_keras.commands.parser import CommandParser, any_path, make_main


def make_parser() -> CommandParser:
    parser = CommandParser("make-tfrecords", __doc__, overrides=False)
    parser.add_argument("--annotations", type=any_path, required=True, help="COCO JSON file")
    parser.add_argument("--images", type=any_path, required=True, metavar="DIR", help="folder of its photographs")
    parser.add_argument(
        "--output", type=any_path, required=True, metavar="PREFIX", help="files are PREFIX-00000-of-0000N.tfrecord, ..."
    )
    parser.add_argument("--shards", type=int, default=1, metavar="N", help="number of files")
    return parser


def run(args: argparse.Namespace) -> None:
    from dh_keras.data.formats.coco import load_coco
    from dh_keras.data.formats.record_writer import write_tfrecords

    dataset = load_coco(args.annotations, args.images)
    print(f"data: {dataset.summary()}")
    written = write_tfrecords(dataset, args.output, shards=args.shards)
    print(f"written: {len(written) - 1} files, {written[0]} and so on, and {written[-1]}")
    print(f"next: dh-keras train --tfrecords '{args.output}-*.tfrecord'")


main = make_main(make_parser, run)
