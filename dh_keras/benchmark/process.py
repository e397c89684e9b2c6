"""Time and memory of a process, and a new process to measure in; without TensorFlow, so that a peer has its memory to
itself.
"""

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from dh_keras.errors import UserError

WARM_UP_CALLS = 2
GEMM_REPEATS = 7


def median_ms(
    function: Callable, *inputs: object, repeats: int, finish: Callable[[], None] = lambda: None
) -> tuple[Any, float]:
    """Outputs of a function and the median of its times in milliseconds, after calls that warm it up.

    Args:
        function: takes inputs.
        inputs: of every call.
        repeats: calls of which the median is taken.
        finish: waits for what a call has begun.
    """
    for _ in range(WARM_UP_CALLS):
        outputs = function(*inputs)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        outputs = function(*inputs)
        finish()
        times.append(time.perf_counter() - start)
    return outputs, 1000.0 * statistics.median(times)


def product_gflops(product: Callable, factor: Any, *, finish: Callable[[], None] = lambda: None) -> float:
    """Billions of operations per second of a square matrix times itself, by a library's product; the median of several.

    Args:
        product: takes both factors.
        factor: [N, N].
        finish: see `median_ms`.
    """
    _, milliseconds = median_ms(product, factor, factor, repeats=GEMM_REPEATS, finish=finish)
    return 2e-6 * factor.shape[0] ** 3 / milliseconds


def peak_rss_mb() -> float:
    """Most memory that this process has held so far, in millions of bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def run_isolated(function: Callable[..., dict], *inputs: Any, **options: Any) -> dict:
    """Call in a new process.

    Raises:
        UserError: when the process dies, as it does when memory runs out.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        try:
            return pool.submit(function, *inputs, **options).result()
        except BrokenProcessPool as error:
            raise UserError(
                "the measured process was killed, probably for want of memory; try a smaller case"
            ) from error
