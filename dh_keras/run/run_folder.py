"""The run folder: what training and conversion write and everything else reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dh_keras.config.load import load_config, save_config
from dh_keras.config.schema import Config
from dh_keras.errors import DataError
from dh_keras.paths import to_path
from dh_keras.run.classes import Category, read_classes, write_classes

CONFIG_FILE = "config.yaml"
CLASSES_FILE = "classes.json"
BEST_WEIGHTS = "best.weights.h5"
LAST_WEIGHTS = "last.weights.h5"
STATE_FILE = "state.npz"
METRICS_FILE = "metrics.csv"
PICTURES_DIR = "pictures"
TENSORBOARD_DIR = "tensorboard"


@dataclass(frozen=True)
class RunFolder:
    """An opened run.

    Args:
        path: the folder.
        config: its complete config, with overrides applied.
        categories: class index k is categories[k].
    """

    path: Path
    config: Config
    categories: tuple[Category, ...]

    @property
    def weights(self) -> Path:
        """The best weights, or the last ones where nothing was evaluated.

        Raises:
            DataError: when the run has neither.
        """
        for name in (BEST_WEIGHTS, LAST_WEIGHTS):
            if (self.path / name).is_file():
                return self.path / name
        raise DataError(
            f"{self.path}: has no {BEST_WEIGHTS} or {LAST_WEIGHTS}; did its training write a checkpoint yet?"
        )


def is_run_folder(path: str | Path) -> bool:
    """Whether a folder holds a run's config and classes."""
    return (to_path(path) / CONFIG_FILE).is_file() and (to_path(path) / CLASSES_FILE).is_file()


def write_run(folder: Path, config: Config, categories: Sequence[Category]) -> None:
    """Write what makes a folder a run: its config and its classes."""
    save_config(config, folder / CONFIG_FILE)
    write_classes(folder / CLASSES_FILE, categories)


def open_run(path: str | Path, overrides: Sequence[str] = ()) -> RunFolder:
    """Open an existing run folder.

    Raises:
        DataError: when it is not one, or its classes cannot be read.
        ConfigError: when its config or an override is wrong.
    """
    path = to_path(path)
    if not is_run_folder(path):
        raise DataError(f"{path}: not a run folder, which holds {CONFIG_FILE} and {CLASSES_FILE}")
    return RunFolder(path, load_config(path / CONFIG_FILE, overrides), read_classes(path / CLASSES_FILE))


def next_free_run(parent: str | Path, name: str) -> Path:
    """First of parent/name, parent/name-2, parent/name-3, ... that does not exist."""
    candidate, number = Path(parent) / name, 1
    while candidate.exists():
        number += 1
        candidate = Path(parent) / f"{name}-{number}"
    return candidate
