"""Reading PyTorch checkpoints without running anything that is in them.

Both formats are read: zip archives (PyTorch 1.6 and later) and the older plain pickles.
"""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dh_keras.errors import DataError, pip_install

# Where training programs keep the network inside a checkpoint, and what they put in front of every name.
MODEL_KEYS = ("model", "state_dict")
WRAPPER_PREFIX = "module."


@dataclass(frozen=True, eq=False)
class TorchFile:
    """What a checkpoint holds.

    Args:
        path: the file.
        tensors: arrays by name, without the prefix that parallel training adds.
        extras: keys beside the network, such as "optimizer".
        meta: the value of the key "meta", if it is a dict.
    """

    path: Path
    tensors: dict[str, np.ndarray]
    extras: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)


def read_torch_file(path: str | Path) -> TorchFile:
    """Read the network's tensors.

    Args:
        path: a .pth file that holds the tensors by name, or a dict with them under "model" or "state_dict".

    Raises:
        DataError: when PyTorch is missing, or the file is missing, damaged, needs code to be run, or holds no network.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    content = _load(path)
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: expected a dict of tensors by name, got {type(content).__name__}")
    key = next((key for key in MODEL_KEYS if isinstance(content.get(key), Mapping)), None)
    network = content if key is None else content[key]
    tensors = {str(name): _to_array(value) for name, value in network.items() if hasattr(value, "detach")}
    if not tensors:
        raise DataError(f"{path}: holds no tensors by name; its keys are {', '.join(map(str, list(content)[:8]))}")
    if all(name.startswith(WRAPPER_PREFIX) for name in tensors):
        tensors = {name.removeprefix(WRAPPER_PREFIX): value for name, value in tensors.items()}
    meta = content.get("meta")
    return TorchFile(
        path=path,
        tensors=tensors,
        extras=() if key is None else tuple(str(other) for other in content if other != key),
        meta=dict(meta) if isinstance(meta, Mapping) else {},
    )


def _load(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise DataError(f"{path}: reading it needs PyTorch: {pip_install('convert')}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
    ) as error:
        raise DataError(f"{path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What PyTorch's many lines come down to."""
    needed = re.search(r"GLOBAL ([\w.]+)", str(error))
    if needed:
        return (
            f"refused, because reading it would run code of {needed[1]}; where it was written, save its tensors alone: "
            "torch.save({'state_dict': model.state_dict()}, 'tensors.pth')"
        )
    return "not a complete PyTorch file; it may be cut off, or of another kind"


def _to_array(tensor: Any) -> np.ndarray:
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
