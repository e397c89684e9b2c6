"""Measure the speed of inference, training or serving.

It is measured part by part, beside a matrix product and a peer; what serves, under requests from several threads.
"""

import argparse
import math
import re

from dh_keras.benchmark import PEERS
from dh_keras.commands.parser import CommandParser, any_path, make_main
from dh_keras.config.load import load_config
from dh_keras.config.schema import ModelConfig
from dh_keras.errors import ConfigError, DataError
from dh_keras.files import new_file, require_absent, write_json
from dh_keras.modeling.constants import PRECISIONS, SIZE_DIVISOR

CONFIG = "mmdetection_double_head_r50_fpn_1x_coco"


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


def make_parser() -> CommandParser:
    parser = CommandParser("benchmark", __doc__)
    parser.add_argument(
        "--config", type=any_path, default=CONFIG, help="file or name, as for train; the detector gets 80 classes"
    )
    parser.add_argument("--train", action="store_true", help="measure training steps instead of inference")
    parser.add_argument("--growth", action="store_true", help="with --train: against batch, RoIs, image size and boxes")
    parser.add_argument(
        "--serve", type=any_path, metavar="MODEL", help="measure this run or SavedModel under load instead"
    )
    parser.add_argument("--threads", nargs="+", type=count, metavar="N", help="with --serve: that send; 1 2 4 8")
    parser.add_argument("--minutes", type=float, help="with --serve: for each number of threads; 1")
    parser.add_argument("--bad", type=float, help="with --serve: share of requests that have no answer; 0.1")
    parser.add_argument("--peer", choices=tuple(PEERS), help="measure this implementation on the same input too")
    parser.add_argument("--output", type=any_path, metavar="FILE.json", help="JSON file to write")
    sizes = "image sizes; 800x1344, and in training a batch of two 512x512 images too, when not given"
    parser.add_argument("--sizes", nargs="+", type=size, metavar="HxW", help=sizes)
    batches = "images per batch; 1 when not given, with --serve 1 2 3 4"
    parser.add_argument("--batches", nargs="+", type=count, metavar="B", help=batches)
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


def measure_inference(args: argparse.Namespace, model: ModelConfig) -> dict:
    from dh_keras.benchmark.inference_benchmark import run_benchmark

    sizes = {"sizes": args.sizes or [(800, 1344)], "batches": args.batches or [1], "surviving": args.surviving}
    return run_benchmark(model, **sizes, precision=args.precision, repeats=args.repeats, peer=args.peer)


def measure_training(args: argparse.Namespace, model: ModelConfig) -> dict:
    from dh_keras.benchmark.training_benchmark import make_cases, run_training_benchmark

    cases = make_cases(args.sizes, args.batches)
    return run_training_benchmark(model, cases=cases, growth=args.growth, repeats=args.repeats, peer=args.peer)


def measure_serving(args: argparse.Namespace) -> dict:
    from dh_keras.benchmark.serving_load import measure_serving

    minutes, bad = 1.0 if args.minutes is None else args.minutes, 0.1 if args.bad is None else args.bad
    if not 0 < minutes < math.inf or not 0 <= bad < 1:
        raise ConfigError(f"--minutes and --bad: expected more than 0, and 0 to less than 1, got {minutes:g}, {bad:g}")
    load = {"threads": args.threads or [1, 2, 4, 8], "batches": args.batches or [1, 2, 3, 4]}
    return measure_serving(args.serve, **load, minutes=minutes, bad=bad)


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if 0 in (args.repeats, *(args.batches or ()), *(args.threads or ())):
        raise ConfigError("--repeats, --batches and --threads: expected at least 1, got 0")
    of_inference = args.surviving or args.precision != "float32"
    if args.train and of_inference:
        raise ConfigError("--surviving and --precision: of inference only; --train measures mixed bfloat16 too")
    if args.growth and (not args.train or args.peer or args.sizes or args.batches):
        raise ConfigError("--growth: needs --train, and has sizes and batches of its own and no --peer")
    if args.serve and (args.train or args.peer or args.sizes or of_inference or args.overrides):
        raise ConfigError("--serve: takes --threads, --batches, --minutes, --bad and --output, and no config changes")
    if not args.serve and (args.threads, args.minutes, args.bad) != (None, None, None):
        raise ConfigError("--threads, --minutes and --bad: need --serve MODEL")


def measure(args: argparse.Namespace) -> dict:
    if args.serve:
        return measure_serving(args)
    if args.peer:
        from dh_keras.benchmark.peer import require_peer

        require_peer(args.peer)
    config = load_config(args.config, args.overrides)
    print(f"config: {' '.join([str(args.config), *args.overrides])}")
    return (measure_training if args.train else measure_inference)(args, config.model)


def run(args: argparse.Namespace) -> None:
    if args.output:
        require_absent(args.output)
    check_options(args)
    results = measure(args)
    if args.output:
        with new_file(args.output) as partial:
            write_json(partial, results)
        print(f"written: {args.output}")
    wrong = [line for measured in results["runs"] for line in measured.get("wrong", ())]
    if wrong:
        raise DataError(f"{args.serve}: {len(wrong)} answers are wrong, the first: {wrong[0]}")


main = make_main(make_parser, run)
