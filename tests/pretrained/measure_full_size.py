"""Convert files with the published shapes and report time and memory; not a test, as it takes minutes and gigabytes.

python tests/pretrained/measure_full_size.py FOLDER [authors|mmdetection] [50|101]

The files hold random values in PyTorch's old format, with the momentum of every parameter beside the network, as a
training checkpoint does.
"""

import collections
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import published

CHILD = "--convert"


def write(path: Path, family: str, depth: int) -> int:
    """Write the checkpoint and return its number of floating-point values."""
    import torch

    shapes = {"authors": published.authors_shapes, "mmdetection": published.mmdetection_shapes}[family]
    tensors = published.make_tensors(shapes(**{**published.PUBLISHED, "depth": depth}))
    network = collections.OrderedDict((name, torch.from_numpy(np.array(value))) for name, value in tensors.items())
    state = {index: {"momentum_buffer": torch.zeros_like(value)} for index, value in enumerate(network.values())}
    content = {"authors": "model", "mmdetection": "state_dict"}[family]
    torch.save(
        {content: network, "optimizer": {"state": state}, "iteration": 180000},
        path,
        _use_new_zipfile_serialization=False,
    )
    return sum(value.size for name, value in tensors.items() if not name.endswith(published.COUNTER))


def convert(path: str, output: str) -> None:
    """In a process of its own, so that the peak is the conversion's."""
    from dh_keras.pretrained.importer import import_checkpoint

    ready = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    run, imported = import_checkpoint(path, output)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(imported.summary())
    values = sum(int(np.prod(variable.shape)) for variable in imported.model.weights)
    size = (run.path / "best.weights.h5").stat().st_size
    print(f"{values:,} values in the model; weights file {size / 1e6:.0f} MB")
    print(f"{seconds:.1f} s; peak memory {peak / 1024:.0f} MB, of which {ready / 1024:.0f} MB before it started")


def main() -> None:
    folder = Path(sys.argv[1])
    families = sys.argv[2:3] or ["authors", "mmdetection"]
    depth = int((sys.argv[3:4] or ["50"])[0])
    for family in families:
        path, output = folder / f"{family}_r{depth}.pth", folder / f"{family}_r{depth}_run"
        values = write(path, family, depth)
        print(f"\n{path.name}: {path.stat().st_size / 1e6:.0f} MB, {values:,} values", flush=True)
        subprocess.run([sys.executable, __file__, CHILD, str(path), str(output)], check=True)


if __name__ == "__main__":
    convert(*sys.argv[2:]) if sys.argv[1] == CHILD else main()
