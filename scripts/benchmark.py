"""Measure how long a detector takes, stage by stage, and how that compares with a matrix product and a peer."""

import argparse
import json
import re
from pathlib import Path

from dh_keras.benchmark import PEERS
from dh_keras.cli import make_parser, run_script
from dh_keras.config import load_config
from dh_keras.constants import PRECISIONS, SIZE_DIVISOR
from dh_keras.errors import ConfigError, DataError

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "mmdetection_double_head_r50_fpn_1x_coco.yaml"


def size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    sides = tuple(int(side) for side in match.groups()) if match else (0, 0)
    if not all(side > 0 and side % SIZE_DIVISOR == 0 for side in sides):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH in multiples of {SIZE_DIVISOR}, got {text!r}")
    return sides


def count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}; key=value goes before lists of numbers")
    return int(text)


def parse() -> argparse.ArgumentParser:
    parser = make_parser(__doc__)
    parser.add_argument("--config", type=Path, default=CONFIG, help="YAML file of the detector; it gets 80 classes")
    parser.add_argument("--peer", choices=tuple(PEERS), help="measure this implementation on the same input too")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="JSON file to write")
    parser.add_argument("--sizes", nargs="+", type=size, default=[(800, 1344)], metavar="HxW", help="image sizes")
    parser.add_argument("--batches", nargs="+", type=count, default=[1], metavar="B", help="images per batch")
    parser.add_argument(
        "--surviving",
        nargs="+",
        type=count,
        metavar="N",
        help="RoIs per image with a score above the threshold; a tenth of the proposals and all of them when not given",
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the layers")
    parser.add_argument("--repeats", type=count, default=5, help="calls of which each time is the median")
    return parser


def main(args: argparse.Namespace) -> None:
    if args.output and args.output.exists():
        raise DataError(f"{args.output}: exists already and is not overwritten; choose another --output")
    if 0 in (args.repeats, *args.batches):
        raise ConfigError("--repeats and --batches: expected at least 1, got 0")
    config = load_config(args.config, args.overrides)
    print(f"config: {' '.join([str(args.config), *args.overrides])}")
    from dh_keras.benchmark.runner import run_benchmark

    results = run_benchmark(
        config.model,
        sizes=args.sizes,
        batches=args.batches,
        surviving=args.surviving,
        precision=args.precision,
        repeats=args.repeats,
        peer=args.peer,
    )
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(results, indent=1), encoding="utf-8")
        print(f"written: {args.output}")


if __name__ == "__main__":
    run_script(main, parse())
