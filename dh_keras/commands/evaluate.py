"""Measure COCO average precision of a run or a SavedModel."""

import argparse

from dh_keras.commands.parser import MODEL, CommandParser, any_path, make_main
from dh_keras.errors import DataError
from dh_keras.files import new_file, require_absent, write_json
from dh_keras.run.classes import class_labels


def make_parser() -> CommandParser:
    parser = CommandParser("evaluate", __doc__, words={"model": ("MODEL", MODEL)})
    parser.add_argument("--annotations", type=any_path, required=True, help="COCO JSON file")
    parser.add_argument("--images", type=any_path, required=True, help="folder of its images")
    parser.add_argument("--output", type=any_path, help="JSON file to write")
    parser.add_argument(
        "--batch-size", type=int, help="images of equal size that are computed together; a run has evaluate.batch_size"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    if args.output:
        require_absent(args.output)
    if args.batch_size is not None and args.batch_size < 1:
        raise DataError(f"--batch-size: expected at least 1, got {args.batch_size}")
    from dh_keras.data.formats.coco import load_coco
    from dh_keras.evaluation.coco_metrics import format_table
    from dh_keras.inference.detector import Detector, evaluate_detector

    detector = Detector.load(args.model, args.overrides)
    print(f"model: {args.model}, classes {', '.join(class_labels([one.name for one in detector.categories]))}")
    dataset = load_coco(args.annotations, args.images, categories=detector.categories, subset=True)
    print(f"data: {dataset.summary()}")
    left_out = [category.name for category in detector.categories if category not in dataset.categories]
    if left_out:
        print(f"left out, as the annotations have no such category: {', '.join(class_labels(left_out))}")
    metrics = evaluate_detector(detector, dataset, batch_size=args.batch_size or detector.batch_size)
    print(format_table(metrics))
    if args.output:
        with new_file(args.output) as partial:
            write_json(partial, metrics)
        print(f"written: {args.output}")


main = make_main(make_parser, run)
