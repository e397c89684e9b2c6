"""Measure the speed of reading and augmenting images.

Every augmentation is measured, without a model.
"""

import argparse

from dh_keras.commands.parser import CommandParser, any_path, make_main
from dh_keras.config.load import DEFAULT_CONFIG, load_config


def make_parser() -> CommandParser:
    parser = CommandParser("benchmark-data", __doc__)
    parser.add_argument("--config", type=any_path, default=DEFAULT_CONFIG.stem, help="file or name, as for train")
    parser.add_argument("--annotations", required=True, metavar="PATH", help="COCO JSON file")
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of photographs")
    parser.add_argument("--tfrecords", metavar="PATTERN", help="the same images in TFRecord files, to compare")
    parser.add_argument("--count", type=int, default=400, help="images for each measurement")
    return parser


def run(args: argparse.Namespace) -> None:
    data = load_config(args.config, args.overrides).data
    from dh_keras.benchmark.input_speed import compare_inputs
    from dh_keras.data.formats.coco import load_coco
    from dh_keras.data.formats.tfrecord import load_tfrecords

    sources = {"folder": load_coco(args.annotations, args.images)}
    if args.tfrecords:
        sources["tfrecords"] = load_tfrecords(args.tfrecords, val_annotations=args.annotations)
    compare_inputs(sources, data, images=args.count)


main = make_main(make_parser, run)
