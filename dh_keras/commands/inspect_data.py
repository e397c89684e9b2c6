"""Look for what is wrong with a COCO data set.

Exits with 1 when training would fail.
"""

import argparse

from dh_keras.commands.parser import CommandParser, any_path, make_main
from dh_keras.config.load import DEFAULT_CONFIG, load_config
from dh_keras.errors import DataError
from dh_keras.run.run_folder import next_free_run


def make_parser() -> CommandParser:
    parser = CommandParser("inspect-data", __doc__)
    parser.add_argument(
        "--config",
        type=any_path,
        default=DEFAULT_CONFIG.stem,
        help="file or name, as for train: its anchors and input size",
    )
    parser.add_argument("--annotations", type=any_path, required=True, metavar="A", help="COCO JSON file")
    parser.add_argument("--images", type=any_path, required=True, metavar="DIR", help="folder of its images")
    parser.add_argument("--val-annotations", type=any_path, metavar="B", help="COCO JSON file of the validation split")
    parser.add_argument("--val-images", type=any_path, metavar="DIR", help="folder of its images")
    parser.add_argument(
        "--output", type=any_path, metavar="REPORT_DIR", help="folder to write (default: reports/ANNOTATIONS)"
    )
    parser.add_argument("--fix", type=any_path, metavar="OUT.json", help="write a cleaned copy of --annotations")
    parser.add_argument("--augmented", type=int, default=0, metavar="N", help="show N batches as training gets them")
    return parser


def run(args: argparse.Namespace) -> None:
    if (args.val_annotations is None) != (args.val_images is None):
        raise DataError("--val-annotations and --val-images: give both or none")
    if args.augmented < 0:
        raise DataError(f"--augmented: expected 0 or more, got {args.augmented}")
    config = load_config(args.config, args.overrides)
    output = args.output or next_free_run("reports", args.annotations.stem)
    print(f"config: {args.config}{' with ' + ' '.join(args.overrides) if args.overrides else ''}")
    print(f"report folder: {output}")
    from dh_keras.reports.data_doctor.inspection import inspect_data

    diagnosis = inspect_data(
        args.annotations,
        args.images,
        config=config,
        output=output,
        val_annotations=args.val_annotations,
        val_images=args.val_images,
        fix=args.fix,
        augmented=args.augmented,
    )
    if diagnosis.refusal:
        raise DataError(f"training would fail: {diagnosis.refusal}")


main = make_main(make_parser, run)
