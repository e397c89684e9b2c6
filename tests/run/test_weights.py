"""Weights files on a disk that becomes full."""

import subprocess
import sys

TRY = """
import gc, resource, sys
from pathlib import Path
import keras
from dh_keras.errors import WriteError
from dh_keras.run.weights import save_weights

model = keras.Sequential([keras.Input((2,)), *(keras.layers.Dense(200, name=f"layer{i}") for i in range(20))])
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
for limit in (0, 1000, 20_000, 100_000, 600_000, 700_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        save_weights(model, Path(sys.argv[1]))
    except WriteError as error:
        print(error)
gc.collect()
print("the end")
"""


def test_a_disk_that_becomes_full_anywhere_in_a_weights_file_ends_no_process(tmp_path):
    path = tmp_path / "best.weights.h5"
    done = subprocess.run([sys.executable, "-c", TRY, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    line = f"{path}: cannot be written: File too large; raise the limit on the size of a file (ulimit -f)"
    assert done.stdout.splitlines() == [line] * 6 + ["the end"]
    assert "Exception ignored" not in done.stderr
    assert list(tmp_path.iterdir()) == []
