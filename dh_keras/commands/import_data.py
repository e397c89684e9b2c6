"""Make COCO JSON of what another tool wrote, and split it.

Pascal VOC, YOLO, LabelMe, CVAT, Open Images; the format is recognised. Exits with 1 when something could not be read.
"""

import argparse
import sys

from dh_keras.commands.parser import CommandParser, any_path, make_main
from dh_keras.paths import to_path

SHOWN_FAULTS = 20


def make_parser() -> CommandParser:
    parser = CommandParser(
        "import-data", __doc__, words={"source": ("SOURCE", "folder or file of annotations")}, overrides=False
    )
    parser.add_argument("--output", type=any_path, required=True, metavar="DIR", help="new folder for the JSON files")
    parser.add_argument(
        "--images", type=any_path, metavar="DIR", help="folder that holds the images (default: SOURCE, or above it)"
    )
    parser.add_argument(
        "--val-share",
        type=float,
        metavar="SHARE",
        help="put this share of the images aside to validate on, such as 0.2",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice that --val-share makes")
    return parser


def run(args: argparse.Namespace) -> None:
    from dh_keras.reports.data_doctor.importing import import_data

    faults = import_data(
        to_path(args.source), args.output, images=args.images, val_share=args.val_share, seed=args.seed
    )
    for fault in faults[:SHOWN_FAULTS]:
        print(f"left out: {fault}", file=sys.stderr)
    if len(faults) > SHOWN_FAULTS:
        print(f"left out: and {len(faults) - SHOWN_FAULTS} more", file=sys.stderr)
    if faults:
        sys.exit(1)


main = make_main(make_parser, run)
