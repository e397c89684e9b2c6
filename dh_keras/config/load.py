"""Reading a config: a YAML file, `key=value` overrides, the schema's defaults, merged and type-checked by OmegaConf."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from dh_keras.config.checks import validate_config
from dh_keras.config.options import flatten
from dh_keras.config.schema import Config, ModelConfig
from dh_keras.errors import ConfigError
from dh_keras.files import write_text
from dh_keras.modeling.variants import VARIANTS

_PACKAGE = Path(__file__).resolve().parents[1]
# Inside the package where it is installed, beside it in the repository.
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
DEFAULT_CONFIG = CONFIGS / "shapes_tiny.yaml"


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `key=value` overrides, fill in defaults, resolve and validate.

    A file that says how long to train, in `train.epochs` or `train.steps`, takes no default for the other one and for
    `train.drops`.

    Args:
        path: a YAML file, or the name of a ready one with or without `configs/` and `.yaml`, such as "shapes_tiny";
            a file that exists goes first. None reads `configs/shapes_tiny.yaml`.
        overrides: strings such as "train.lr=0.02" or "model.rpn.anchor_ratios=[0.5,1,2]".

    Returns:
        A complete `Config`; loss weights are numbers, never None.

    Raises:
        ConfigError: naming the key's path and what was expected.

    Examples:
        >>> load_config(overrides=["model.variant=double_head_ext"]).model.loss_weights.conv_box
        2.0
    """
    path = DEFAULT_CONFIG if path is None else find_config(path)
    tree = _read_yaml(path)
    return _complete(_merge(_defaults_beside(tree), tree, f"config {path}"), overrides)


def complete_config(config: Config, overrides: Sequence[str] = ()) -> Config:
    """A resolved and validated copy of a config with `key=value` overrides; else as `load_config`."""
    return _complete(OmegaConf.structured(config), overrides)


def find_config(path: str | Path) -> Path:
    """The file that is meant by a path or by the name of a ready config.

    Raises:
        ConfigError: listing the ready ones.
    """
    path = Path(path)
    if path.is_file():
        return path
    ready = {file.stem: file for file in sorted(CONFIGS.glob("*.yaml"))}
    name = path.name.removesuffix(".yaml")
    if path.parent not in (Path(), Path("configs")) or name not in ready:
        raise ConfigError(f"config {path}: no such file; the ready ones are {', '.join(ready)}")
    return ready[name]


def save_config(config: Config, path: str | Path) -> None:
    """Write the complete tree as YAML; `load_config` of the file gives an equal tree."""
    write_text(path, OmegaConf.to_yaml(OmegaConf.structured(config)))


def _read_yaml(path: Path) -> Any:
    try:
        tree = OmegaConf.load(path)
    except Exception as error:
        raise ConfigError(f"config {path}: not valid YAML: {_first_line(error)}") from error
    if not OmegaConf.is_dict(tree):
        raise ConfigError(
            f"config {path}: expected the keys model, data and train at the top, got {type(tree).__name__}"
        )
    return tree


def _defaults_beside(tree: Any) -> Any:
    """The schema's defaults; without the length of training and its drops where a file gives a length."""
    defaults, train = OmegaConf.structured(Config), OmegaConf.to_container(tree).get("train")
    if isinstance(train, dict) and train.keys() & {"epochs", "steps"}:
        defaults.train.steps, defaults.train.drops = None, []
    return defaults


def _complete(tree: Any, overrides: Sequence[str]) -> Config:
    """Apply overrides, resolve, validate."""
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"override {override!r}: expected key=value, such as train.lr=0.01")
        try:
            change = OmegaConf.from_dotlist([override])
        except Exception as error:
            raise ConfigError(f"override {override!r}: {_first_line(error)}") from error
        tree = _merge(tree, change, f"override {override!r}")
    try:
        config = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:  # ${a key that is not there}
        raise ConfigError(f"key {error.full_key}: {_first_line(error)}") from error
    _resolve_loss_weights(config.model)
    validate_config(config)
    return config


def _merge(base: Any, change: Any, source: str) -> Any:
    try:
        return OmegaConf.merge(base, change)
    except (OmegaConfBaseException, TypeError) as error:  # TypeError: keys where a list belongs
        raise ConfigError(f"{source}: {_explain(error, base, change)}") from error


def _explain(error: Exception, base: Any, change: Any) -> str:
    """Name the key and what its place in the tree would have accepted."""
    key = getattr(error, "full_key", None)
    if isinstance(error, ConfigKeyError):
        parent = key.rpartition(".")[0]
        siblings = OmegaConf.select(base, parent) if parent else base
        return f"key {key}: no such key; expected one of {', '.join(sorted(siblings))}"
    if key:
        return f"key {key}: {_first_line(error)}"
    for section in dict.fromkeys(key.rpartition(".")[0] for key in flatten(Config())):
        given = OmegaConf.select(change, section)
        if given is not None and not OmegaConf.is_dict(given):  # OmegaConf does not say where
            return f"key {section}: expected keys and their values, got {given!r}"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _resolve_loss_weights(model: ModelConfig) -> None:
    """Replace None by the published weight of the variant."""
    if model.variant not in VARIANTS:
        return  # validate_config refuses it by name
    published = VARIANTS[model.variant].loss_weights
    for weight in dataclasses.fields(model.loss_weights):
        if getattr(model.loss_weights, weight.name) is None:
            setattr(model.loss_weights, weight.name, published.get(weight.name, 0.0))
