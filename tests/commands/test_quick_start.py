"""Keras is imported without its extras by a command, and anybody else gets them."""

import subprocess
import sys

import pytest

CODE = """
import atexit, gc, sys
atexit.register(lambda: print(gc.get_freeze_count() > 10_000))
from dh_keras.commands.quick_start import start_quickly
before = gc.get_threshold()[0]
start_quickly()
assert gc.get_threshold()[0] > 10 * before
import keras
extras = {"cv2", "matplotlib", "pandas", "sklearn"}
print(*sorted(extras & set(sys.modules)))
import matplotlib.pyplot
from sklearn.base import BaseEstimator
print(*sorted({"matplotlib", "sklearn"} & set(sys.modules)))
"""


def test_keras_misses_its_extras_and_a_later_import_finds_them():
    for name in ("matplotlib", "sklearn"):
        pytest.importorskip(name)
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert run.stdout.splitlines() == ["", "matplotlib sklearn", "True"], run.stderr[-2000:]
