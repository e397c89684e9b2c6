"""Other implementations, each measured by a file of its own in a process of its own, which it is the first to fill."""

import importlib.util
from types import ModuleType

from dh_keras.benchmark import PEERS
from dh_keras.benchmark.case import Case
from dh_keras.benchmark.process import run_isolated
from dh_keras.errors import UserError, one_line

ADVICE = {
    "model_garden": 'pip install "tf-models-official<2.21,>=2.20"',
    "mmdetection": "MMDetection 3.3, and an mmcv that it takes with its operations compiled for this PyTorch",
}


def require_peer(name: str) -> None:
    """Fail before anything is measured.

    Raises:
        UserError: with what to install, when the peer is not there.
    """
    if importlib.util.find_spec(PEERS[name]) is None:
        raise UserError(f"--peer {name}: is not installed here; it needs {ADVICE[name]}")


def measure_peer(name: str, *, height: int, width: int, batch: int, repeats: int) -> dict:
    """Time a peer with random weights in inference mode, on seeded noise.

    Args:
        name: one of `PEERS`.
        height, width, batch: of uint8 images without padding.
        repeats: calls of which the median is taken.

    Returns:
        name (with what exactly was measured), height, width, batch, precision, proposals per image, and total_ms.
    """
    return run_isolated(_measure_inference, name, height=height, width=width, batch=batch, repeats=repeats)


def measure_peer_training(name: str, case: Case, *, repeats: int) -> dict:
    """Time a peer's own training step with random weights in float32 and its own optimiser, at a learning rate of 0.

    Returns:
        name, the case's fields, total_ms, gemm_gflops and peak_memory_mb.
    """
    return run_isolated(_measure_training, name, case, repeats=repeats)


def _measure_inference(name: str, **options: int) -> dict:
    return _module(name).measure_inference(**options)


def _measure_training(name: str, case: Case, *, repeats: int) -> dict:
    return {"name": name, **case.to_dict(), **_module(name).measure_training(case, repeats=repeats)}


def _module(name: str) -> ModuleType:
    """The file that measures a peer."""
    try:
        return importlib.import_module(f"dh_keras.benchmark.{name}")
    except ImportError as error:
        raise UserError(f"--peer {name}: {one_line(error)}; it needs {ADVICE[name]}") from error
