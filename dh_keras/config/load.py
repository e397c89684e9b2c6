"""Reading a config: a YAML file, `key=value` overrides, the schema's defaults, merged and type-checked by OmegaConf."""

import contextlib
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import MarkedYAMLError

from dh_keras.config.checks import validate_config
from dh_keras.config.options import flatten
from dh_keras.config.schema import HUB_PREFIX, IMAGENET_PIXELS, PATH_KEYS, Config, ModelConfig
from dh_keras.errors import ConfigError, one_line, reason_of
from dh_keras.files import is_utf8, write_text
from dh_keras.modeling.variants import VARIANTS
from dh_keras.paths import to_path

_PACKAGE = Path(__file__).resolve().parents[1]
# Inside the package where it is installed, beside it in the repository.
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
DEFAULT_CONFIG = CONFIGS / "shapes_tiny.yaml"


def load_config(
    path: str | Path | None = None, overrides: Sequence[str] = (), *, values: Mapping[str, str] | None = None
) -> Config:
    """Read a YAML file, apply `key=value` overrides, fill in defaults, resolve and validate.

    A file that says how long to train, in `train.epochs` or `train.steps`, takes no default for the other one and for
    `train.drops`; one that gives a cosine takes none for `train.drops`, and an override that gives one removes them.

    Args:
        path: a YAML file, or the name of a ready one with or without `configs/` and `.yaml`, such as "shapes_tiny";
            a file that exists goes first. None reads `configs/shapes_tiny.yaml`.
        overrides: strings such as "train.lr=0.02" or "model.rpn.anchor_ratios=[0.5,1,2]"; what follows the = is YAML,
            but for the keys of paths, whose text is taken as it is where it is not null, quoted or ${...}. One of
            train.epochs and train.steps takes the place of the other, and drops that are not given move with it.
        values: {key: text} that goes before the file, and behind overrides; the text is never YAML.

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
    merged = _merge(_defaults_beside(tree), tree, f"config {path}")
    for key, text in (values or {}).items():
        OmegaConf.update(merged, key, _escape(text, key))
    return _complete(merged, overrides)


def complete_config(config: Config, overrides: Sequence[str] = ()) -> Config:
    """A resolved and validated copy of a config with `key=value` overrides; else as `load_config`."""
    return _complete(_literal_tree(config), overrides)


def find_config(path: str | Path) -> Path:
    """The file that is meant by a path or by the name of a ready config.

    Raises:
        ConfigError: listing the ready ones.
    """
    path = to_path(path)
    if path.is_file():
        return path
    ready = {file.stem: file for file in sorted(CONFIGS.glob("*.yaml"))}
    name = path.name.removesuffix(".yaml")
    if path.parent not in (Path(), Path("configs")) or name not in ready:
        raise ConfigError(f"config {path}: no such file; the ready ones are {', '.join(ready)}")
    return ready[name]


def save_config(config: Config, path: str | Path) -> None:
    """Write the complete tree as YAML; `load_config` of the file gives an equal tree."""
    write_text(path, OmegaConf.to_yaml(_literal_tree(config)))


def _literal_tree(config: Config) -> Any:
    """The tree of a resolved config, in which ${ is text."""
    return OmegaConf.merge(OmegaConf.structured(Config), _escape(dataclasses.asdict(config)))


def _escape(value: Any, key: str = "") -> Any:
    """Keep OmegaConf from reading anything into texts, however deep in lists and dicts."""
    if isinstance(value, dict):
        return {name: _escape(item, f"{key}.{name}" if key else str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [_escape(item, key) for item in value]
    if not isinstance(value, str):
        return value
    if value == "???" or not is_utf8(value):  # OmegaConf's word for what is missing
        raise ConfigError(f"key {key}: expected UTF-8 text other than ???, got {value!r:.80}; rename it")
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)


def _read_yaml(path: Path) -> Any:
    try:
        with path.open(encoding="utf-8") as file:
            tree = OmegaConf.load(file)
    except PermissionError as error:
        raise ConfigError(f"config {path}: cannot be read: {reason_of(error)}") from error
    except Exception as error:
        raise ConfigError(f"config {path}: not valid YAML: {_explain_yaml(error)}") from error
    if not OmegaConf.is_dict(tree):
        raise ConfigError(
            f"config {path}: expected the keys model, data, train and evaluate at the top, got {type(tree).__name__}"
        )
    for key in PATH_KEYS:
        value = None
        with contextlib.suppress(OmegaConfBaseException, TypeError, ValueError):  # said later, with the key
            value = OmegaConf.select(tree, key)
        if isinstance(value, bool | int | float):
            raise ConfigError(
                f"config {path}: key {key}: expected a path, got {value!r:.80}, as YAML reads it; quote it"
            )
    return tree


def _explain_yaml(error: Exception) -> str:
    """What is wrong with a YAML file, and in which line."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {one_line(error.problem)}"
    if isinstance(error, UnicodeError):
        return "it is not UTF-8 text; save it as such"
    return one_line(error)


def _defaults_beside(tree: Any) -> Any:
    """The schema's defaults; without the length and the drops where a file gives a length, or drops with a cosine."""
    defaults, train = OmegaConf.structured(Config), OmegaConf.to_container(tree).get("train")
    if isinstance(train, dict) and train.keys() & {"epochs", "steps"}:
        defaults.train.steps, defaults.train.drops = None, []
    if isinstance(train, dict) and train.get("schedule") == "cosine":
        defaults.train.drops = []
    return defaults


def _complete(tree: Any, overrides: Sequence[str]) -> Config:
    """Apply overrides, resolve, validate."""
    given = tree
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"override {override!r:.100}: expected key=value, such as train.lr=0.01")
        try:
            change = OmegaConf.from_dotlist([_keep_path(override)])
        except Exception as error:
            raise ConfigError(f"override {override!r:.100}: {_first_line(error)}") from error
        tree = _merge(tree, change, f"override {override!r:.100}")
    if overrides:
        keys = {override.partition("=")[0] for override in overrides}
        tree = _follow_length(given, tree, keys)
        if "train.schedule" in keys and tree.train.schedule == "cosine" and "train.drops" not in keys:
            tree = OmegaConf.merge(tree, {"train": {"drops": []}})
    try:
        config = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:  # ${a key that is not there}
        raise ConfigError(f"key {error.full_key}: {_first_line(error)}") from error
    _resolve_loss_weights(config.model)
    if not config.model.backbone.name.startswith(HUB_PREFIX):  # else KerasHub is asked when the model is made
        resolve_pixels(config.model, IMAGENET_PIXELS)
    validate_config(config)
    return config


def _follow_length(given: Any, tree: Any, keys: set[str]) -> Any:
    """Where an override gives epochs or steps, the other is null, and drops that it does not give keep their share."""
    ours, theirs = (OmegaConf.to_container(one.train) for one in (tree, given))
    lengths = {name: ours[name] for name in ("epochs", "steps") if f"train.{name}" in keys and ours[name] is not None}
    if len(lengths) != 1 or not isinstance(*lengths.values(), int):  # two, or ${a reference}
        return tree
    ((name, now),) = lengths.items()
    changes: dict[str, Any] = {{"epochs": "steps", "steps": "epochs"}[name]: None}
    before = theirs["steps"] or theirs["epochs"]
    if "train.drops" not in keys and isinstance(before, int):
        drops = sorted({round(drop * now / before) for drop in theirs["drops"]})
        changes["drops"] = [drop for drop in drops if 0 < drop < now]
    return OmegaConf.merge(tree, {"train": changes})


def resolve_pixels(model: ModelConfig, statistics: Mapping[str, list[float]]) -> None:
    """Replace null in a config by numbers."""
    for name, values in statistics.items():
        if getattr(model, name) is None:
            setattr(model, name, list(values))


def _keep_path(override: str) -> str:
    """Quote a path, so that YAML does not take its text for a number, a comment or a list."""
    key, _, text = override.partition("=")
    if key not in PATH_KEYS or text in ("", "null", "~") or text[0] in "'\"" or "${" in text:
        return override
    return f"{key}='{text.replace(chr(39), chr(39) * 2)}'"


def _merge(base: Any, change: Any, source: str) -> Any:
    try:
        return OmegaConf.merge(base, change)
    except (OmegaConfBaseException, TypeError, ArithmeticError, RecursionError) as error:
        # TypeError: keys where a list belongs. The others: integers beyond any float, nesting beyond any stack.
        raise ConfigError(f"{source}: {_explain(error, base, change)}") from error


def _explain(error: Exception, base: Any, change: Any) -> str:
    """Name the key and what its place in the tree would have accepted."""
    key = getattr(error, "full_key", None)
    if isinstance(error, ConfigKeyError):
        parent, siblings = key.rpartition(".")[0], None
        with contextlib.suppress(OmegaConfBaseException):  # a name that looks like an interpolation
            siblings = OmegaConf.select(base, parent) if parent else base
        if OmegaConf.is_dict(siblings):
            return f"key {key:.80}: no such key; expected one of {', '.join(sorted(siblings))}"
        return f"key {key:.80}: no such key"
    if key:
        return f"key {key}: {_first_line(error)}"
    for section in dict.fromkeys(key.rpartition(".")[0] for key in flatten(Config())):
        given = OmegaConf.select(change, section)
        if given is not None and not OmegaConf.is_dict(given):  # OmegaConf does not say where
            return f"key {section}: expected keys and their values, got {given!r:.80}"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]


def _resolve_loss_weights(model: ModelConfig) -> None:
    """Replace None by the published weight of the variant."""
    if model.variant not in VARIANTS:
        return  # validate_config refuses it by name
    published = VARIANTS[model.variant].loss_weights
    for weight in dataclasses.fields(model.loss_weights):
        if getattr(model.loss_weights, weight.name) is None:
            setattr(model.loss_weights, weight.name, published.get(weight.name, 0.0))
