"""The files of a run, damaged: each is one line that names the file, whatever a library makes of it."""

import keras
import numpy as np
import pytest

from dh_keras.errors import DataError, TrainingError
from dh_keras.run.classes import Category, read_classes, write_classes
from dh_keras.run.weights import load_weights, save_weights
from dh_keras.training.resume import load_state, save_state


def assert_one_line(error, path):
    assert str(error.value).startswith(f"{path}: is damaged")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "null", "5", '["cat"]', "[[]]", '[{"id": 1}]', "[" * 100000, "\xff"),
        *(f'[{{"id": {number}, "name": "cat"}}]' for number in ("1e999", "NaN", "1.5", "true", '"1"', "null")),
        *(f'[{{"id": {number}, "name": "cat"}}]' for number in (2**31, -(2**31), 2**63, "9" * 5000)),
        *(f'[{{"id": 1, "name": {name}}}]' for name in ("null", "7", '"\\ud800"', "[]")),
    ],
    ids=lambda text: text[:40],
)
def test_classes_that_are_none_are_one_line(tmp_path, text):
    path = tmp_path / "classes.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError) as error:
        read_classes(path)
    assert_one_line(error, path)


def test_classes_come_back_as_they_were(tmp_path):
    categories = (Category(2**31 - 1, "café"), Category(-1, "a\nb"), Category(0, ""))
    write_classes(tmp_path / "classes.json", categories)
    assert read_classes(tmp_path / "classes.json") == categories


def small_model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), keras.layers.Dense(4)])
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    model.optimizer.build(model.trainable_variables)
    return model


def mutations(data, count):
    """The same bytes with some of them changed, cut or repeated, other ones for each number."""
    for seed in range(count):
        random = np.random.default_rng(seed)
        changed = bytearray(data)
        for place in random.integers(0, len(data), random.integers(1, 9)):
            changed[place] = random.choice([0, 255, int(random.integers(256))])
        yield bytes(changed[: random.integers(1, len(data))] if seed % 5 == 0 else changed)


def test_weights_that_were_changed_at_random_are_read_or_one_line(tmp_path):
    model, path = small_model(), tmp_path / "best.weights.h5"
    save_weights(model, path)
    refused = []
    for changed in mutations(path.read_bytes(), 150):
        path.write_bytes(changed)
        try:
            load_weights(model, path)
        except DataError as error:
            refused.append(str(error))
    assert len(refused) > 30
    told = f"{path}: is damaged, or of another architecture than its run's config: "
    assert all(line.startswith(told) and "\n" not in line for line in refused)


def test_a_state_that_was_changed_at_random_is_read_or_one_line(tmp_path):
    model, path = small_model(), tmp_path / "state.npz"
    save_state(model, {"step": 3}, path)
    refused = []
    for changed in mutations(path.read_bytes(), 150):
        path.write_bytes(changed)
        try:
            load_state(model, path)
        except TrainingError as error:
            refused.append(str(error))
    assert len(refused) > 30
    assert all(line.startswith(f"{path}: ") and "\n" not in line for line in refused)


@pytest.mark.parametrize("progress", [5, None, "x", ["step"]])
def test_a_state_without_progress_is_damaged(tmp_path, progress):
    model, path = small_model(), tmp_path / "state.npz"
    save_state(model, progress, path)
    with pytest.raises(TrainingError) as error:
        load_state(model, path)
    assert_one_line(error, path)


def test_a_state_of_an_unknown_compression_is_damaged(tmp_path):
    model, path = small_model(), tmp_path / "state.npz"
    save_state(model, {"step": 3}, path)
    data = path.read_bytes()
    place = data.index(b"PK\x01\x02") + 10  # the method of compression in the list of files
    path.write_bytes(data[:place] + b"\x63" + data[place + 1 :])
    with pytest.raises(TrainingError) as error:
        load_state(model, path)
    assert_one_line(error, path)
