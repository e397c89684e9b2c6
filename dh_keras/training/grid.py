"""Training the same on a grid of variants and seeds: a run folder for each, in a process of its own."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dh_keras.config.load import load_config, save_config
from dh_keras.config.options import flatten
from dh_keras.config.schema import Config
from dh_keras.errors import ConfigError, DataError, Interrupted, TrainingError
from dh_keras.files import make_folder, require_new_folder
from dh_keras.run.run_folder import PICTURES_DIR, is_run_folder

CONFIGS_DIR = "configs"
RUNS_DIR = "runs"
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class GridRun(NamedTuple):
    """One training of a grid.

    Args:
        variant: of the detector.
        seed: of the training.
        config: all the others of the grid are equal to it but for these two, and what follows from the variant.
        config_file: where it is written.
        folder: the run folder.
    """

    variant: str
    seed: int
    config: Config
    config_file: Path
    folder: Path

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.variant}, seed {self.seed}"

    @property
    def is_finished(self) -> bool:
        """Whether training has nothing left to do; pictures are its last."""
        return is_run_folder(self.folder) and (self.folder / PICTURES_DIR).is_dir()


def make_grid(
    output: Path,
    *,
    config_path: Path,
    overrides: Sequence[str],
    values: dict[str, str],
    variants: Sequence[str],
    seeds: int,
) -> list[GridRun]:
    """Decide what is trained, all variants with one seed before the next, and write their configs; read nothing else.

    Args:
        output: folder of the grid; new, empty, or that of the same grid, which goes on.
        config_path, overrides, values: see `load_config`.
        variants: of the detector.
        seeds: how many, from `train.seed` on.

    Raises:
        ConfigError: when the folder holds a grid of another config, naming what differs.
        DataError: when it holds something else, or there are no validation images, by which to compare.
    """
    given = load_config(config_path, overrides, values=values)
    if (given.data.train_annotations or given.data.train_tfrecords) and not given.data.val_annotations:
        raise DataError("compare: needs validation images; give --val-annotations and --val-images")
    if not (output / CONFIGS_DIR).is_dir():
        require_new_folder(output)
    grid, first_seed = [], given.train.seed
    for seed in range(first_seed, first_seed + seeds):
        for variant in variants:
            changes = [*overrides, f"model.variant={variant}", f"train.seed={seed}"]
            config = load_config(config_path, changes, values=values)
            name = f"{variant}-seed{seed}"
            grid.append(GridRun(variant, seed, config, output / CONFIGS_DIR / f"{name}.yaml", output / RUNS_DIR / name))
    for run in grid:
        if run.config_file.is_file():
            _require_same(run)
    make_folder(output / CONFIGS_DIR)
    for run in grid:
        save_config(run.config, run.config_file)
    return grid


def _require_same(run: GridRun) -> None:
    ours, theirs = flatten(run.config), flatten(load_config(run.config_file))
    differing = [f"{key} is {theirs[key]!r} there and {ours[key]!r} here" for key in ours if ours[key] != theirs[key]]
    if differing:
        raise ConfigError(
            f"{run.config_file}: is of another comparison: {', '.join(differing)}; choose another --output"
        )


def train_one(run: GridRun, *, strategy: str) -> None:
    """Train, or go on where it was stopped, in another process, whose memory is free again afterwards.

    Raises:
        TrainingError: when it failed; its own line is printed before.
        Interrupted: when a signal came, which is handed on to it; everything is saved then.
    """
    command = [sys.executable, "-m", "dh_keras", "train", "--strategy", strategy, "--output", str(run.folder)]
    command += ["--resume"] if is_run_folder(run.folder) else ["--config", str(run.config_file)]
    came = []
    # In a session of its own, so that a Ctrl-C reaches it once.
    process = subprocess.Popen(command, start_new_session=True)

    def hand_on(number: int, frame: object) -> None:
        process.send_signal(signal.SIGKILL if came else signal.SIGTERM)
        came.append(number)

    before = {number: signal.signal(number, hand_on) for number in _STOP_SIGNALS}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        number = signal.Signals(came[0])
        raise Interrupted(f"stopped by {number.name}; the same command goes on from here", 128 + number)
    if status:
        raise TrainingError(
            f"{run.name}: training ended with status {status}, its message is above; mend what it says and give the "
            "same command again"
        )
