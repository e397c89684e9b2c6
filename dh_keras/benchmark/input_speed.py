"""How many images a second the input of training reads, decodes, augments and batches, without a model behind it."""

import dataclasses
import os
import time
from collections.abc import Mapping

import numpy as np

from dh_keras.config.schema import AUGMENTATIONS, DataConfig
from dh_keras.data.balance import epoch_images
from dh_keras.data.dataset import CocoDataset
from dh_keras.data.pipeline import plan_batches, train_dataset

JITTER = [0.1, 2.0]


def augmentations(data: DataConfig) -> dict[str, DataConfig]:
    """Return the settings to measure, by name: every augmentation without jitter, and flip with it."""
    plain = {name: dataclasses.replace(data, augmentation=name, scale_jitter=None) for name in AUGMENTATIONS}
    return plain | {f"flip, scale_jitter {JITTER}": dataclasses.replace(data, augmentation="flip", scale_jitter=JITTER)}


def measure_input(dataset: CocoDataset, data: DataConfig, *, images: int, seed: int) -> tuple[float, float]:
    """Go through batches of a training split.

    Args:
        dataset: the split.
        data: sizes, batch size and augmentation.
        images: at least how many are timed, after a few batches that are not.
        seed: of the order and the draws.

    Returns:
        Images per second, and the processor time they took in seconds per image, over all cores and threads of this
        process. The second does not depend on what else the machine does.
    """
    chosen = epoch_images(dataset, data)
    warm_up, steps = 4, -(-images // data.batch_size)
    plan = plan_batches(chosen.canvas_index, batch_size=data.batch_size, epochs=1, seed=seed, repeats=chosen.repeats)
    plan = chosen.indices[np.resize(plan, (warm_up + steps, data.batch_size))]
    batches = iter(train_dataset(dataset, data, plan=plan, seed=seed))
    for _ in range(warm_up):
        next(batches)
    start, start_used = time.perf_counter(), sum(os.times()[:2])
    shown = sum(int(batch["images"].shape[0]) for batch in batches)
    elapsed, used = time.perf_counter() - start, sum(os.times()[:2]) - start_used
    return shown / elapsed, used / shown


def compare_inputs(sources: Mapping[str, CocoDataset], data: DataConfig, *, images: int) -> None:
    """Print a row for every source and augmentation, with the machine's load before and after.

    Args:
        sources: training splits by the name that is shown.
        data: sizes and batch size.
        images: at least how many are timed for each row.
    """
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before; short side {data.min_size}, "
        f"long side at most {data.max_size}, batch {data.batch_size}"
    )
    print(f"{'source':<10} {'augmentation':<32} {'images/s':>9} {'CPU ms/image':>13}")
    for source, dataset in sources.items():
        for name, settings in augmentations(data).items():
            speed, used = measure_input(dataset, settings, images=images, seed=0)
            print(f"{source:<10} {name:<32} {speed:>9.1f} {used * 1000:>13.1f}", flush=True)
    print(f"load {os.getloadavg()[0]:.1f} after, with this measurement in it")
