"""Write curves, confusions and a model card into a run.

Its best and worst images too. What an earlier analysis wrote is replaced.
"""

import argparse

from dh_keras.commands.parser import CommandParser, any_path, make_main, require_paths
from dh_keras.errors import ConfigError


def make_parser() -> CommandParser:
    parser = CommandParser(
        "analyze", __doc__, words={"run": ("RUN", "run folder, as train and convert-checkpoint write it")}
    )
    parser.add_argument(
        "--annotations", type=any_path, help="COCO JSON file, where the run's validation data has moved"
    )
    parser.add_argument("--images", type=any_path, help="folder of its images")
    parser.add_argument(
        "--score", type=float, default=0.5, help="confusions and pictures are of detections that score more than this"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    if not 0 <= args.score < 1:
        raise ConfigError(f"--score: expected a number from 0 to below 1, got {args.score}")
    require_paths(args.run, args.annotations, args.images)
    from dh_keras.reports.run_report import analyze_run

    analyze_run(args.run, annotations=args.annotations, images=args.images, score=args.score, overrides=args.overrides)


main = make_main(make_parser, run)
