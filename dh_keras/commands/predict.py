"""Detect objects in photographs and videos, and draw them."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from dh_keras.commands.parser import MODEL, CommandParser, any_path, make_main, require_paths
from dh_keras.errors import DataError, visible
from dh_keras.paths import to_path
from dh_keras.run.classes import Category, find_classes, read_classes
from dh_keras.run.run_folder import CLASSES_FILE, is_run_folder, next_free_run

SHOWN_ERRORS = 10


WORDS = {
    "model": ("MODEL", MODEL),
    "sources": (
        "[SOURCE...]",
        "photographs, also http:// and https://, videos, folders of them, and patterns such as 'cells/*.jpg'",
    ),
}


def make_parser() -> CommandParser:
    parser = CommandParser("predict", __doc__, words=WORDS)
    parser.add_argument(
        "--output", type=any_path, help="new folder for the predictions and the pictures (default: predictions)"
    )
    parser.add_argument("--list", type=any_path, metavar="FILE", help="text file with the path of a file in each line")
    parser.add_argument(
        "--score",
        type=float,
        help="show detections that score more than this; if not given, than what was best for their class on the run's "
        "validation images, or 0.5",
    )
    parser.add_argument("--batch-size", type=int, default=1, help="images that go through the network together")
    parser.add_argument("--shard", default="1/1", help="do only this share of the files, such as 3/16")
    parser.add_argument("--resume", action="store_true", help="go on with what --output holds already")
    parser.add_argument("--format", choices=("json", "coco", "csv"), default="json", help="of the predictions")
    parser.add_argument("--annotations", type=any_path, help="COCO JSON that gives the image ids of --format coco")
    parser.add_argument(
        "--classes",
        metavar="NAME,...",
        help="show and write only these, such as 'red cell,platelet'; the others do not count",
    )
    parser.add_argument(
        "--save-crops",
        action="store_true",
        help="write what was found as pictures of its own, in a folder for each class",
    )
    parser.add_argument("--no-pictures", action="store_true", help="write no drawn pictures and videos")
    return parser


def run(args: argparse.Namespace) -> None:
    from dh_keras.files import CHOOSE_OR_RESUME, require_new_folder
    from dh_keras.inference.prediction.folder import PredictionSettings
    from dh_keras.inference.prediction.sources import Shard, describe_left_out, list_sources

    if args.resume and args.output is None:
        raise DataError("--resume: needs --output, the folder to go on with")
    settings = PredictionSettings(
        score=0.5 if args.score is None else args.score,
        batch_size=args.batch_size,
        shard=Shard.parse(args.shard),
        format=args.format,
        annotations=args.annotations,
        pictures=not args.no_pictures,
        crops=args.save_crops,
        model=to_path(args.model),
        overrides=tuple(args.overrides),
    )
    paths = list_sources(args.sources, args.list)
    require_paths(args.model)
    args.output = args.output or next_free_run(".", "predictions")
    if not args.resume:
        require_new_folder(args.output, CHOOSE_OR_RESUME)
    if is_run_folder(settings.model):
        _wanted(args, read_classes(settings.model / CLASSES_FILE))  # before TensorFlow is loaded

    from dh_keras.inference.detector import Detector
    from dh_keras.inference.drawing import describe_score
    from dh_keras.inference.prediction.predict_files import predict_files

    detector = Detector.load(args.model, args.overrides)
    if args.score is None:
        settings = dataclasses.replace(settings, score=detector.best_scores)
    settings = dataclasses.replace(settings, classes=_wanted(args, detector.categories))
    share = f", shard {settings.shard}" if settings.shard.count > 1 else ""
    only = f", only {visible(', '.join(settings.classes))}" if settings.classes else ""
    print(f"model: {args.model}; {len(paths)} file(s){share}, score above {describe_score(settings.score)}{only}")
    if left_out := describe_left_out(args.sources):
        print(left_out)
    summary = predict_files(detector, paths, args.output, settings, resume=args.resume)
    print(f"found: {summary}")
    print(f"written: {args.output}" + ("; join the shards with dh-keras merge-predictions" if share else ""))
    for error in summary.errors[:SHOWN_ERRORS]:
        print(f"error: {error}", file=sys.stderr)
    if len(summary.errors) > SHOWN_ERRORS:
        print(f"error: and {len(summary.errors) - SHOWN_ERRORS} more", file=sys.stderr)
    if summary.errors:
        sys.exit(1)


def _wanted(args: argparse.Namespace, categories: Sequence[Category]) -> tuple[str, ...]:
    """Names that --classes gives."""
    if args.classes is None:
        return ()
    try:
        return find_classes(args.classes, categories)
    except DataError as error:
        raise DataError(f"--classes: {error}") from error


main = make_main(make_parser, run)
