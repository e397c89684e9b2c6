"""Measure a run and write curves, confusions, its worst and best images and a model card into its folder."""

import argparse
from pathlib import Path

from dh_keras.commands.parser import make_parser, run_script
from dh_keras.errors import ConfigError


def parse() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, positionals=("run",))
    parser.add_argument("--annotations", type=Path, help="COCO JSON file, where the run's validation data has moved")
    parser.add_argument("--images", type=Path, help="folder of its images")
    parser.add_argument(
        "--score", type=float, default=0.5, help="confusions and pictures are of detections that score more than this"
    )
    return parser


def main(args: argparse.Namespace) -> None:
    if not 0 <= args.score < 1:
        raise ConfigError(f"--score: expected a number from 0 to below 1, got {args.score}")
    from dh_keras.reports.run_report import analyze_run

    analyze_run(args.run, annotations=args.annotations, images=args.images, score=args.score, overrides=args.overrides)


if __name__ == "__main__":
    run_script(main, parse())
