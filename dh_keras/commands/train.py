"""Train a detector; on generated shapes if no data is given."""

import argparse

from dh_keras.commands.parser import CommandParser, add_data_options, any_path, given_data, make_main, require_paths
from dh_keras.config.load import DEFAULT_CONFIG, load_config
from dh_keras.errors import ConfigError
from dh_keras.run.run_folder import CONFIG_FILE, next_free_run, open_run
from dh_keras.training.workers.cluster import prepare_environment

# Options for what everybody changes: type, help, and the keys that they stand for.
SHORT = {
    "epochs": (int, "passes over the training images, train.epochs", ("train.epochs",)),
    "batch": (int, "images of a step on all devices, data.batch_size", ("data.batch_size",)),
    "size": (
        int,
        "longest side in pixels, data.min_size and data.max_size",
        ("data.min_size", "data.max_size"),
    ),
    "lr": (float, "learning rate for train.base_batch_size images, train.lr", ("train.lr",)),
}


def make_parser() -> CommandParser:
    parser = CommandParser("train", __doc__)
    parser.add_argument(
        "--config",
        type=any_path,
        help=f"YAML file or name of a ready config (default: chosen for the data that is given, {DEFAULT_CONFIG.stem} "
        "without, the run's own with --resume)",
    )
    add_data_options(parser)
    for name, (kind, help_, _) in SHORT.items():
        parser.add_argument(f"--{name}", type=kind, metavar="N", help=help_)
    parser.add_argument(
        "--strategy", choices=("none", "mirrored", "multi_worker"), default="none", help="devices to use"
    )
    parser.add_argument(
        "--worker-timeout", type=float, default=180.0, metavar="SECONDS", help="wait this long for the other workers"
    )
    parser.add_argument("--output", type=any_path, metavar="RUN", help="run folder to write (default: runs/CONFIG)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --output")
    parser.add_argument(
        "--init",
        metavar="RUN_OR_WEIGHTS",
        help="start from these weights, or published ones by name; other classes are fine",
    )
    return parser


def given_overrides(args: argparse.Namespace) -> list[str]:
    """Short options as what they stand for, and the overrides, which go before them."""
    short = [f"{key}={value}" for name in SHORT if (value := getattr(args, name)) is not None for key in SHORT[name][2]]
    return [*short, *args.overrides]


def run(args: argparse.Namespace) -> None:
    if args.resume and args.output is None:
        raise ConfigError("--resume: needs --output RUN, the folder of the run to go on with")
    given = given_data(args)
    overrides = given_overrides(args)
    changes = [*(f"{key}={text}" for key, text in given.items()), *overrides]
    path = args.config or (open_run(args.output).path / CONFIG_FILE if args.resume else DEFAULT_CONFIG)
    name, init = path.stem, args.init
    if args.config is None and not args.resume and (args.train_annotations or args.tfrecords):
        if args.strategy == "multi_worker":
            raise ConfigError("--strategy multi_worker: needs --config, as what lies on each machine may differ")
        require_paths(args.init, *(text for key, text in given.items() if key != "data.train_tfrecords"))
        from dh_keras.training.choice import choose_config

        choice = choose_config(given, overrides, init=args.init)
        print(choice.said)
        path, name, init, overrides = choice.config, choice.name, choice.init, [*choice.settings, *overrides]
    config = load_config(path, overrides, values=given)
    output = args.output or next_free_run("runs", name)
    print(f"config: {path}{' with ' + ' '.join(changes) if changes else ''}")
    print(f"run folder: {output}")
    if args.strategy == "multi_worker":
        prepare_environment()
    from dh_keras.reports.training import train  # after the arguments are known to be good: TensorFlow takes seconds

    train(
        config,
        output=output,
        strategy=args.strategy,
        resume=args.resume,
        init=init,
        worker_timeout=args.worker_timeout,
    )


main = make_main(make_parser, run)
