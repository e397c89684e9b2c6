"""Detect objects in photographs with a run folder or a SavedModel, and draw them."""

import argparse
import sys
from pathlib import Path

from dh_keras.cli import make_parser, run_script


def parse() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, positionals=("model", "images"))
    parser.add_argument("--output", type=Path, required=True, help="new folder for predictions.json and the pictures")
    parser.add_argument("--score", type=float, default=0.5, help="show detections that score more than this")
    return parser


def main(args: argparse.Namespace) -> None:
    from dh_keras.detector import Detector
    from dh_keras.prediction import list_images, predict_files

    paths = list_images(args.images)
    detector = Detector.load(args.model, args.overrides)
    print(f"model: {args.model}; {len(paths)} image(s), score above {args.score}")
    faults = predict_files(detector, paths, args.output, score=args.score)
    print(f"written: {args.output} ({len(paths) - len(faults)} pictures, predictions.json)")
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if faults:
        sys.exit(1)


if __name__ == "__main__":
    run_script(main, parse())
