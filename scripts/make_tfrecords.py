"""Write a COCO annotation file and its images to TFRecord files in the Model Garden's detection schema."""

import argparse
from pathlib import Path

from dh_keras.commands.parser import make_parser, run_script


def parse() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--annotations", type=Path, required=True, help="COCO JSON file")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of its photographs")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="PREFIX", help="files are PREFIX-00000-of-0000N.tfrecord, ..."
    )
    parser.add_argument("--shards", type=int, default=1, metavar="N", help="number of files")
    return parser


def main(args: argparse.Namespace) -> None:
    if args.overrides:
        parse().error(f"this script reads no config and takes no overrides, got {args.overrides[0]!r}")
    from dh_keras.data.formats.coco import load_coco
    from dh_keras.data.formats.record_writer import write_tfrecords

    dataset = load_coco(args.annotations, args.images)
    print(f"data: {dataset.summary()}")
    written = write_tfrecords(dataset, args.output, shards=args.shards)
    print(f"written: {len(written) - 1} files, {written[0]} and so on, and {written[-1]}")
    print(f"next: python scripts/train.py --tfrecords '{args.output}-*.tfrecord'")


if __name__ == "__main__":
    run_script(main, parse())
