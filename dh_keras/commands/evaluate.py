"""Measure COCO average precision of a run or a SavedModel.

A run is measured on its own validation images if no others are given.
"""

import argparse

from dh_keras.commands.parser import MODEL, CommandParser, any_path, make_main, require_paths
from dh_keras.errors import DataError
from dh_keras.files import new_file, require_absent, write_json
from dh_keras.run.classes import class_labels
from dh_keras.run.run_folder import is_run_folder, open_run


def make_parser() -> CommandParser:
    parser = CommandParser("evaluate", __doc__, words={"model": ("MODEL", MODEL)})
    parser.add_argument("--annotations", type=any_path, help="COCO JSON file")
    parser.add_argument("--images", type=any_path, help="folder of its images")
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
    require_paths(args.model, args.annotations, args.images)
    own = args.annotations is None and args.images is None
    if not own and None in (args.annotations, args.images):
        raise DataError("--annotations and --images: expected both, or neither for a run's own validation images")
    if own and not is_run_folder(args.model):
        raise DataError(f"{args.model}: is no run folder, which knows its data; give --annotations and --images")
    from dh_keras.data.formats.coco import load_coco
    from dh_keras.evaluation.coco_metrics import format_table
    from dh_keras.inference.detector import Detector
    from dh_keras.inference.evaluation import evaluate_detector
    from dh_keras.reports.run_data import load_validation

    detector = Detector.load(args.model, args.overrides)
    print(f"model: {args.model}, classes {', '.join(class_labels([one.name for one in detector.categories]))}")
    if own:
        dataset = load_validation(open_run(args.model, args.overrides), None, None)
    else:
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
