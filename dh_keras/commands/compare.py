"""Train variants with several seeds and compare them.

Everything else is equal. Given again, the command goes on where it was stopped.
"""

import argparse

from dh_keras.commands.parser import CommandParser, add_data_options, any_path, given_data, make_main
from dh_keras.config.load import DEFAULT_CONFIG, find_config
from dh_keras.errors import ConfigError
from dh_keras.modeling.variants import VARIANTS

BASE = "double_head"


def make_parser() -> CommandParser:
    parser = CommandParser("compare", __doc__)
    parser.add_argument(
        "--config",
        type=any_path,
        default=DEFAULT_CONFIG.stem,
        help="YAML file or name of a ready config",
    )
    add_data_options(parser)
    parser.add_argument(
        "--variants", nargs="+", metavar="VARIANT", help=f"some of {', '.join(VARIANTS)}; all if not given"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings of each variant")
    parser.add_argument("--strategy", choices=("none", "mirrored"), default="none", help="devices to use")
    parser.add_argument("--output", type=any_path, required=True, help="folder for the runs, the table and the figure")
    return parser


def run(args: argparse.Namespace) -> None:
    variants = args.variants or [*VARIANTS]
    unknown = [name for name in variants if name not in VARIANTS]
    if unknown or len({*variants}) < len(variants):
        wrong = unknown[0] if unknown else "one twice"
        raise ConfigError(f"--variants: expected some of {', '.join(VARIANTS)}, each once, got {wrong}")
    if args.seeds < 1:
        raise ConfigError(f"--seeds: expected a number from 1 up, got {args.seeds}")
    from dh_keras.reports.comparison import write_comparison
    from dh_keras.training.grid import make_grid, train_one

    grid = make_grid(
        args.output,
        config_path=find_config(args.config),
        overrides=args.overrides,
        values=given_data(args),
        variants=variants,
        seeds=args.seeds,
    )
    base = BASE if BASE in variants else variants[0]
    for number, planned in enumerate(grid, start=1):
        if not planned.is_finished:
            print(f"\n=== training {number} of {len(grid)}: {planned.name} ===", flush=True)
            train_one(planned, strategy=args.strategy)
            write_comparison(args.output, [one for one in grid if one.is_finished], base=base)
    print(write_comparison(args.output, grid, base=base))
    print(f"written: {args.output}")


main = make_main(make_parser, run)
