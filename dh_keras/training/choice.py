"""Which config somebody's photographs are trained with when none is named: the rules of the table in docs/train.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dh_keras.config.load import find_config, load_config
from dh_keras.config.schema import HUB_PREFIX, PATH_KEYS
from dh_keras.data.splits import load_splits
from dh_keras.errors import pip_install
from dh_keras.modeling.hub_backbone import has_keras_hub, is_preset_here
from dh_keras.paths import to_path
from dh_keras.pretrained.fetch import cache_folder, published_run
from dh_keras.pretrained.published import PUBLISHED
from dh_keras.run.run_folder import CONFIG_FILE, is_run_folder
from dh_keras.training.strategy import find_gpus

SCRATCH, FINETUNE = "double_head_r50w24_scratch", "double_head_efficientnet_lite0_finetune"
BATCH_SIZE = 4
# As many steps as the two configs were measured with, see their tables; but so many epochs.
STEPS, EPOCHS = 1460, (12, 100)
# Longest side in pixels: of small pictures and of large ones, without and with a GPU.
LEAST_SIDE, MOST_SIDE = 320, {False: 512, True: 1344}
DIVISOR = 32


class Choice(NamedTuple):
    """What to train with.

    Args:
        config: a file.
        settings: overrides of it, which go before those that were typed.
        init: weights of a detector to start from, or None.
        name: of the run.
        said: why, in a line or two.
    """

    config: Path
    settings: list[str]
    init: str | None
    name: str
    said: str


def choose_config(values: Mapping[str, str], overrides: Sequence[str], *, init: str | None) -> Choice:
    """Choose by the training photographs, the device, and what can be had without a download that nobody asked for.

    Args:
        values: paths by the keys of the config.
        overrides: as typed; what they decide is not chosen.
        init: weights that were asked for, or None.

    Raises:
        ConfigError, DataError: when the data cannot be read.
    """
    typed = {override.partition("=")[0]: override.partition("=")[2] for override in overrides}
    paths = [override for override in overrides if override.partition("=")[0] in PATH_KEYS]
    has_gpu = bool(find_gpus())
    sizes = load_splits(load_config(overrides=paths, values=values).data)[0].sizes
    settings = _length(len(sizes)) | _size(sizes, has_gpu=has_gpu)
    run = _detector(init, has_gpu=has_gpu)
    if run is not None:
        init, config = init or str(run), run / CONFIG_FILE
        rate = load_config(config).train.lr / 10
        settings |= {"data.batch_size": str(BATCH_SIZE), "train.lr": f"{rate:g}"}
        settings |= {"train.warmup_steps": "100", "train.warmup_factor": "0.001"}
        name, reason, advice = run.name, "from its weights, with a tenth of its learning rate", ""
    else:
        name, reason, advice = _backbone(typed.get("model.backbone.name", ""), has_gpu=has_gpu)
        config = find_config(name)
    chosen = [f"{key}={value}" for key, value in settings.items() if not _is_decided(key, typed)]
    reasons = "; ".join(filter(None, [reason, " ".join(chosen)]))
    if run is not None:  # it names the data that it was trained with
        files = [key for key in PATH_KEYS if key.startswith(("data.train_", "data.val_"))]
        chosen += [f"{key}=null" for key in files if key not in {**values, **typed}]
    short, long = np.median(np.sort(sizes, axis=1), axis=0).round().astype(int).tolist()
    device = "a GPU" if has_gpu else "a CPU"
    said = f"config chosen for {len(sizes)} photographs of about {long}x{short} pixels on {device}: {name}, {reasons}"
    return Choice(config, chosen, init, name, f"{said}\n{advice}" if advice else said)


def _length(images: int) -> dict[str, str]:
    steps_per_epoch = -(-images // BATCH_SIZE)
    return {"train.epochs": str(int(np.clip(round(STEPS / steps_per_epoch), *EPOCHS)))}


def _size(sizes: np.ndarray, *, has_gpu: bool) -> dict[str, str]:
    """The sides of the usual photograph, neither too small nor too large, in multiples of 32."""
    short, long = np.median(np.sort(sizes, axis=1), axis=0)
    most = np.clip(long, LEAST_SIDE, MOST_SIDE[has_gpu])
    sides = {"data.min_size": most * short / long, "data.max_size": most}
    return {key: str(max(DIVISOR * round(side / DIVISOR), DIVISOR)) for key, side in sides.items()}


def _is_decided(key: str, typed: Mapping[str, str]) -> bool:
    """Whether what was typed takes the place of a setting."""
    for group in (("train.epochs", "train.steps"), ("data.min_size", "data.max_size")):
        if key in group:
            return any(other in typed for other in group)
    return key in typed


def _detector(init: str | None, *, has_gpu: bool) -> Path | None:
    """The run folder to start from: that of `init`, or of published weights in the cache where there is a GPU."""
    if init is not None:
        path = to_path(published_run(init))
        runs = [path, path.parent]
    else:
        runs = [cache_folder() / name for name in PUBLISHED] if has_gpu else []
    return next(filter(is_run_folder, runs), None)


def _backbone(typed: str, *, has_gpu: bool) -> tuple[str, str, str]:
    """The config without weights of a detector, its reason, and what to do for a better one."""
    preset = load_config(FINETUNE).model.backbone.name
    if typed.startswith(HUB_PREFIX):
        return FINETUNE, f"for the backbone {typed}", ""
    if is_preset_here(preset.removeprefix(HUB_PREFIX)):
        return FINETUNE, f"from ImageNet weights, {preset}", ""
    advice = f"type --config {FINETUNE}, which downloads ImageNet weights once"
    if has_gpu:
        advice = f"type dh-keras fetch {next(iter(PUBLISHED))}, which downloads a detector once, and this again"
    elif not has_keras_hub():
        advice = f"{pip_install('hub')} and {advice}"
    return SCRATCH, "from random weights, as none are at hand", f"for better results: {advice}"
