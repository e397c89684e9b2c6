"""Training end to end on a few small images: the run folder, resuming, fine-tuning, and what stops it."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from training.run_comparison import differences, rows_of, state_of

from dh_keras.config.load import load_config
from dh_keras.errors import DataError, Interrupted, TrainingError
from dh_keras.modeling.constants import LOSS_NAMES
from dh_keras.run.run_folder import RunFolder, next_free_run, open_run
from dh_keras.run.weights import initialize_weights
from dh_keras.training import fitting
from dh_keras.training.callbacks import RunRecorder, StepCounter
from dh_keras.training.fitting import fit, stretches
from dh_keras.training.loop import train
from dh_keras.training.progress import Progress, ProgressBar
from dh_keras.training.recording import COLUMNS
from dh_keras.training.schedule import Length
from dh_keras.training.signals import STOP_SIGNALS, StopRequest
from dh_keras.training.strategy import make_strategy, strategy_name
from dh_keras.training.workers.workers import Workers


def test_a_run_folder_holds_everything_that_is_promised(tiny_run):
    names = {path.name for path in tiny_run.iterdir()}
    assert names == {
        "config.yaml",
        "classes.json",
        "best.weights.h5",
        "last.weights.h5",
        "state.npz",
        "metrics.csv",
        "tensorboard",
        "pictures",
    }
    assert [row["name"] for row in json.loads((tiny_run / "classes.json").read_text())] == [
        category.name for category in open_run(tiny_run).categories
    ]
    rows = rows_of(tiny_run)
    assert list(rows[0]) == list(COLUMNS)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert int(rows[1]["step"]) == 2 * int(rows[0]["step"])
    assert all(float(row["total_loss"]) > 0 and float(row["images_per_second"]) > 0 for row in rows)
    assert all(0 <= float(row["AP"]) <= 1 and 0 <= float(row["data_wait"]) <= 1 for row in rows)
    assert list((tiny_run / "tensorboard").iterdir())
    pictures = sorted((tiny_run / "pictures").iterdir())
    assert len(pictures) == 2
    with Image.open(pictures[0]) as picture:
        assert picture.width > 2 * 640 * 0.7


def test_weights_files_hold_no_optimizer(tiny_run):
    with h5py.File(tiny_run / "best.weights.h5") as file:
        assert not any("optimizer" in name for name in file)
    with np.load(tiny_run / "state.npz") as state:
        assert any(name.startswith("optimizer/") for name in state.files)


@pytest.fixture
def signal_at(monkeypatch):
    """Return a function after which this process gets a signal when training has done so many steps."""

    count = StepCounter.on_train_batch_end

    def arrange(step, number):
        def count_and_send(self, batch, logs=None):
            if self.progress.step + 1 == step:
                os.kill(os.getpid(), number)
            count(self, batch, logs)

        monkeypatch.setattr(StepCounter, "on_train_batch_end", count_and_send)

    return arrange


def test_a_run_that_signals_stop_twice_becomes_identical_to_one_that_nothing_stopped(
    tiny_run, tmp_path, tiny_overrides, shapes_arguments, short_training, signal_at, capsys
):
    quick = "train.sanity_images=0"  # which changes nothing
    config = load_config(overrides=[*tiny_overrides, *shapes_arguments, *short_training, quick])
    run = tmp_path / "run"
    command = f"dh-keras train --resume --output {run}"
    # In the middle of an epoch, then after its last step, before the evaluation.
    for asked, step, number, status in ((config, 4, signal.SIGTERM, 143), (None, 14, signal.SIGINT, 130)):
        signal_at(step, number)
        with pytest.raises(Interrupted) as stop:
            train(asked, output=run, resume=asked is None)
        assert stop.value.status == status
        assert str(stop.value) == f"stopped by {number.name} after step {step}; go on with: {command}"
        assert json.loads(str(state_of(run)["progress"]))["step"] == step
    assert f"resumed {run}: 4 of 14 steps done" in capsys.readouterr().out
    train(None, output=run, resume=True)
    assert set(differences(run, tiny_run).values()) == {0.0}
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    train(None, output=run, resume=True)
    assert f"{run}: has finished, after 14 of 14 steps" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_an_existing_folder_is_not_overwritten(tiny_run, tiny_overrides, shapes_arguments, short_training):
    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")}
    config = load_config(overrides=[*tiny_overrides, *shapes_arguments, *short_training])
    with pytest.raises(DataError, match=r"exists already and is not overwritten; choose another --output, or --resume"):
        train(config, output=tiny_run)
    assert {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")} == before
    assert next_free_run(tiny_run.parent, tiny_run.name).name == f"{tiny_run.name}-2"


def test_resuming_needs_a_run_and_its_state(tmp_path, tiny_run):
    with pytest.raises(DataError, match="not a run folder"):
        train(None, output=tmp_path, resume=True)
    without = tmp_path / "without"
    shutil.copytree(tiny_run, without)
    (without / "state.npz").unlink()
    with pytest.raises(TrainingError, match=r"state\.npz: nothing to resume from"):
        train(None, output=without, resume=True)
    (without / "state.npz").write_bytes((tiny_run / "state.npz").read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"state\.npz: is damaged"):
        train(None, output=without, resume=True)


def test_fine_tuning_to_other_classes_skips_the_predictors_and_says_so(tiny_run, make_tiny_detector):
    run = open_run(tiny_run)
    trained = make_tiny_detector(num_classes=len(run.categories))
    assert initialize_weights(trained, tiny_run, run.categories) == []
    other = make_tiny_detector(num_classes=2, seed=3)
    random = {v.path: v.numpy() for v in other.trainable_variables}
    skipped = initialize_weights(other, tiny_run, run.categories[:2])
    assert len(skipped) == 4
    assert all("predictor" in line and "in the file" in line and "here" in line for line in skipped)
    for ours, theirs in zip(other.trainable_variables, trained.trainable_variables, strict=True):
        expected = random[ours.path] if "_predictor" in ours.path and "head/" in ours.path else theirs.numpy()
        if "rpn" in ours.path:
            expected = theirs.numpy()
        np.testing.assert_array_equal(ours.numpy(), expected, err_msg=ours.path)


def test_classes_of_other_names_are_other_classes_even_if_as_many(tiny_run, make_tiny_detector):
    run = open_run(tiny_run)
    renamed = [type(c)(c.id, f"new {c.name}") for c in run.categories]
    detector = make_tiny_detector(num_classes=len(renamed))
    assert len(initialize_weights(detector, tiny_run, renamed)) == 4


def test_weights_of_another_architecture_are_refused(tiny_run, make_tiny_detector, tmp_path):
    run = open_run(tiny_run)
    wider = make_tiny_detector("model.fpn.channels=24", num_classes=len(run.categories))
    before = [v.numpy() for v in wider.variables]
    with pytest.raises(DataError, match=r"is of another architecture: \d+ arrays do not fit, first .*\[.*\], not \["):
        initialize_weights(wider, tiny_run, run.categories)
    assert all(np.array_equal(v.numpy(), value) for v, value in zip(wider.variables, before, strict=True))
    (tmp_path / "x.weights.h5").write_bytes(b"not hdf5")
    with pytest.raises(DataError, match="not a readable"):
        initialize_weights(wider, tmp_path / "x.weights.h5", run.categories)
    with pytest.raises(DataError, match="neither a run folder nor"):
        initialize_weights(wider, tmp_path / "nothing", run.categories)


def test_an_exploding_run_stops_with_the_loss_and_keeps_its_folder(
    tmp_path, tiny_overrides, shapes_arguments, short_training
):
    config = load_config(
        overrides=[
            *tiny_overrides,
            *shapes_arguments,
            *short_training,
            "train.lr=1e30",
            "train.drops=[1]",
            "train.seed=1",
            "train.sanity_images=0",
        ]
    )
    with pytest.raises(
        TrainingError, match=r"^non-finite .* at step \d+, image ids \[[\d ]+\]; lower train\.lr"
    ) as error:
        train(config, output=tmp_path / "run")
    assert "\n" not in str(error.value)
    assert (tmp_path / "run" / "config.yaml").is_file()


def test_a_step_says_how_many_seconds_it_waited_for_its_batch(make_tiny_detector, batch, monkeypatch):
    detector, waited = make_tiny_detector(), []
    gradients = [tf.zeros(variable.shape) for variable in detector.trainable_variables]
    losses = dict.fromkeys((*LOSS_NAMES, "total_loss"), tf.constant(0.0))
    monkeypatch.setattr(detector, "_gradients_and_losses", lambda batch: (gradients, losses))

    def slowly(number):
        time.sleep(0.4)
        return number

    numbers = tf.data.Dataset.range(3).map(lambda number: tf.numpy_function(slowly, [number], tf.int64))
    batches = numbers.map(lambda number: {**batch, "image_ids": batch["image_ids"] + tf.ensure_shape(number, [])})
    note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda step, logs: waited.append(logs["data_wait"]))
    detector.fit(batches, steps_per_epoch=3, epochs=1, callbacks=[note], shuffle=False, verbose=0)
    assert all(0.3 < seconds < 5.0 for seconds in waited[1:])
    assert len(waited) == 3


def count_steps(progress, image_ids):
    """A counter of steps that see two of these images each, in their order."""
    return StepCounter(
        progress=progress,
        stop=StopRequest(lambda: 0, ""),
        workers=Workers(),
        dataset=SimpleNamespace(image_ids=np.array(image_ids)),
        plan=SimpleNamespace(step=lambda number: np.array([2 * number, 2 * number + 1])),
    )


@pytest.mark.parametrize("steps", [1, 3])
def test_a_loss_that_is_not_finite_is_said_whatever_the_ids_of_its_images(
    make_tiny_detector, batch, monkeypatch, steps
):
    """At the end of an epoch, and while the step after it is done."""
    monkeypatch.setattr(fitting, "find_bad_image", lambda dataset, positions: pytest.fail("read all images"))
    detector, progress = make_tiny_detector(), Progress()
    monkeypatch.setattr(detector, "weighted_total", lambda losses: float("nan") * tf.add_n(list(losses.values())))
    counter = count_steps(progress, [-7, 12, 3, 4, 5, 6])
    with pytest.raises(TrainingError, match=r"^non-finite gradient at step 1, image ids \[-7 12\]; lower train\.lr"):
        fit(
            detector,
            lambda step: tf.data.Dataset.from_tensors(batch).repeat(),
            step=0,
            length=Length(steps=steps, epochs=1, steps_per_epoch=steps),
            callbacks=[counter],
            dataset=None,
            plan=counter.plan,
        )
    assert progress.step == 1
    assert int(detector.optimizer.iterations) == 0


def test_nothing_is_saved_of_a_step_that_is_not_finite(make_tiny_detector, batch, monkeypatch, tmp_path):
    """Its losses are: without a look at its gradients the checkpoint would count it."""
    detector, progress = make_tiny_detector(), Progress()
    monkeypatch.setattr(detector, "weighted_total", lambda losses: float("nan") * tf.add_n(list(losses.values())))
    counter = count_steps(progress, [1, 2] * 9)
    length = Length(steps=9, epochs=1, steps_per_epoch=9)
    recorder = RunRecorder(
        run=RunFolder(tmp_path, load_config(overrides=["train.checkpoint_every=1"]), ()),
        progress=progress,
        length=length,
        evaluate=None,
        progress_bar=ProgressBar(progress=progress, batch_size=2, length=length, show=False),
        settle=counter.settle,
    )
    with pytest.raises(TrainingError, match="non-finite gradient at step 1"):
        fit(
            detector,
            lambda step: tf.data.Dataset.from_tensors(batch).repeat(),
            step=0,
            length=length,
            callbacks=[counter, recorder],
            dataset=None,
            plan=counter.plan,
        )
    assert not (tmp_path / "state.npz").exists()


def test_an_image_that_breaks_while_training_is_named(tmp_path, tiny_shapes, tiny_overrides, short_training):
    images = tmp_path / "train"
    shutil.copytree(tiny_shapes.train_images, images)
    broken = sorted(images.iterdir())[3]
    # A Huffman table that cannot be: the header is fine, decoding fails.
    data = bytearray(broken.read_bytes())
    table = data.index(b"\xff\xc4") + 5
    data[table : table + 16] = b"\xff" * 16
    broken.write_bytes(bytes(data))
    config = load_config(
        overrides=[
            *tiny_overrides,
            *short_training,
            f"data.train_annotations={tiny_shapes.train_annotations}",
            f"data.train_images={images}",
        ]
    )
    with pytest.raises(DataError, match=broken.name):
        train(config, output=tmp_path / "run")


def test_steps_without_validation_images_in_a_thread_write_the_last_weights_only(
    tmp_path, tiny_shapes, tiny_overrides, short_training, capsys
):
    overrides = [
        *tiny_overrides,
        *short_training,
        "train.epochs=null",
        "train.steps=7",
        f"data.train_annotations={tiny_shapes.train_annotations}",
        f"data.train_images={tiny_shapes.train_images}",
    ]
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with ThreadPoolExecutor(1) as server:  # as a server or a page that trains does
        run = server.submit(train, load_config(overrides=overrides), output=tmp_path / "run").result()
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
    assert not (run.path / "best.weights.h5").exists()
    assert run.weights.name == "last.weights.h5"
    assert rows_of(run.path)[-1]["step"] == "7"
    assert all(row["AP"] == "" for row in rows_of(run.path))
    assert "next: dh-keras predict" in capsys.readouterr().out


@pytest.mark.slow
def test_steps_of_two_batches_are_counted_as_steps_and_resumed_between_them(
    tmp_path, tiny_overrides, shapes_arguments, short_training, signal_at, capsys
):
    overrides = [
        *tiny_overrides,
        *shapes_arguments,
        *short_training,
        "data.batch_size=2",
        "train.accumulate=2",
        "train.epochs=null",
        "train.steps=3",
        "train.lr=0.02",
        "train.pictures=1",
        "train.sanity_images=0",
    ]
    config = load_config(overrides=overrides)
    train(config, output=tmp_path / "whole")
    lr = config.train.lr * 4 / config.train.base_batch_size
    said = f"for a batch of {config.train.base_batch_size} -> {lr:g} for a batch of 4 (2 of 2 for one step), warm-up"
    assert said in capsys.readouterr().out
    signal_at(2, signal.SIGTERM)
    with pytest.raises(Interrupted):
        train(config, output=tmp_path / "run")
    state = state_of(tmp_path / "run")
    assert json.loads(str(state["progress"]))["step"] == 2
    train(None, output=tmp_path / "run", resume=True)
    assert set(differences(tmp_path / "run", tmp_path / "whole").values()) == {0.0}
    assert rows_of(tmp_path / "run")[-1]["lr"] == f"{lr:.6g}"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_adamw_a_cosine_averages_parts_and_all_augmentation_go_on_to_the_same_bits(
    tmp_path, tiny_overrides, shapes_arguments, short_training, signal_at, precision
):
    overrides = [
        *tiny_overrides,
        *shapes_arguments,
        *short_training,
        "train.optimizer=adamw",
        "train.schedule=cosine",
        "train.lr=0.002",
        "train.l2=0.05",
        "train.clip_norm=1",
        "train.warmup_steps=2",
        "train.ema_momentum=0.5",
        "train.accumulate=2",
        f"train.precision={precision}",
        "train.epochs=null",
        "train.steps=6",
        "train.pictures=0",
        "train.sanity_images=0",
        "data.mosaic=0.5",
        f"data.augment_file={Path(__file__).parents[1] / 'data' / 'pipeline.yaml'}",
    ]
    config = load_config(overrides=overrides)
    train(config, output=tmp_path / "whole")
    signal_at(2, signal.SIGTERM)
    with pytest.raises(Interrupted):
        train(config, output=tmp_path / "run")
    train(None, output=tmp_path / "run", resume=True)
    assert set(differences(tmp_path / "run", tmp_path / "whole").values()) == {0.0}
    state = state_of(tmp_path / "run")
    shapes = [array.shape for name, array in state.items() if name.startswith("optimizer/")]
    # Of every weight two means of its gradients and the average of itself.
    assert sorted(shapes.count(shape) for shape in set(shapes) if len(shape) > 1)[0] % 3 == 0
    peak = 0.002 * 4 / config.train.base_batch_size
    steps_per_epoch = int(rows_of(tmp_path / "run")[0]["step"])
    expected = [peak / 2 * (1 + math.cos(math.pi * (step - 2) / 4)) for step in (steps_per_epoch, 6)]
    assert [float(row["lr"]) for row in rows_of(tmp_path / "run")] == pytest.approx(expected, rel=1e-4, abs=1e-9)


DETERMINISTIC_TWICE = """
import sys
import time
sys.path.insert(0, sys.argv[1])
import tensorflow as tf
from training.run_comparison import differences
from dh_keras.config.load import load_config
from dh_keras.training.loop import train
config = load_config(overrides=sys.argv[3:])
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
first, second = (train(config, output=f"{sys.argv[2]}/{name}").path for name in ("first", "second"))
print(sorted(set(differences(first, second).values())))
"""


@pytest.mark.slow
def test_deterministic_training_runs_and_gives_the_same_weights_again(
    tmp_path, tiny_overrides, shapes_arguments, short_training
):
    overrides = [
        *tiny_overrides,
        *shapes_arguments,
        *short_training,
        "train.deterministic=true",
        "train.epochs=null",
        "train.steps=3",
        "train.pictures=1",
        "train.sanity_images=0",
    ]
    command = [sys.executable, "-c", DETERMINISTIC_TWICE, str(Path(__file__).parents[1]), str(tmp_path), *overrides]
    run = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.splitlines()[-1] == "[0.0]"
    row = rows_of(tmp_path / "first")[-1]
    assert row["data_wait"] == ""  # TensorFlow's clock is refused
    assert float(row["images_per_second"]) > 0


def test_a_shorter_last_epoch_is_a_stretch_of_its_own():
    length = Length(steps=25, epochs=3, steps_per_epoch=10)
    assert stretches(0, length) == [(0, 2, 10, 0), (2, 3, 5, 20)]
    assert stretches(3, length) == [(0, 1, 7, 3), (1, 2, 10, 10), (2, 3, 5, 20)]
    assert stretches(20, length) == [(2, 3, 5, 20)]
    assert stretches(23, length) == [(2, 3, 2, 23)]
    assert stretches(25, length) == []
    whole = Length(steps=30, epochs=3, steps_per_epoch=10)
    assert stretches(10, whole) == [(1, 3, 10, 10)]
    assert stretches(29, whole) == [(2, 3, 1, 29)]
    assert stretches(4, Length(steps=7, epochs=1, steps_per_epoch=10)) == [(0, 1, 3, 4)]


def test_mirrored_runs_on_the_cpu_and_says_so(capsys):
    strategy = make_strategy("mirrored")
    assert strategy_name(strategy) == "mirrored"
    assert strategy.num_replicas_in_sync == 1
    assert "mirrored, 1 replica(s) on CPU (no GPU is visible)" in capsys.readouterr().out


def test_the_callers_config_stays_as_it_is_and_the_run_gets_the_resolved_one(monkeypatch, tmp_path, tiny_overrides):
    config = load_config(overrides=tiny_overrides)
    given = []

    def prepare(config, output, **others):
        given.append(config.model.backbone.depth)
        raise TrainingError("enough")

    def deepen(model):
        return replace(model, backbone=replace(model.backbone, depth=50))

    monkeypatch.setattr("dh_keras.training.loop.resolve_model", deepen)
    monkeypatch.setattr("dh_keras.training.loop._prepare", prepare)
    with pytest.raises(TrainingError, match="enough"):
        train(config, output=tmp_path / "run")
    assert given == [50]
    assert config == load_config(overrides=tiny_overrides)


def test_a_gpu_that_is_in_use_keeps_its_settings(monkeypatch, capsys):
    def refuse(gpu, enable):
        raise RuntimeError("Physical devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0"])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", refuse)
    assert make_strategy("none").num_replicas_in_sync == 1
    note, line = capsys.readouterr().out.splitlines()
    assert note.startswith("note: this process uses its GPUs already")
    assert line == "strategy: none, on one GPU"


@pytest.mark.parametrize("resume", [False, True])
def test_memory_growth_is_set_before_a_preset_lets_tensorflow_compute(
    monkeypatch, tmp_path, tiny_run, tiny_overrides, resume
):
    """TensorFlow refuses it afterwards."""
    calls = []

    def resolve(model):
        calls.append("preset")
        raise TrainingError("enough")

    devices = tf.config.list_physical_devices
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"] if kind == "GPU" else devices(kind))
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda gpu, on: calls.append(f"{gpu} {on}"))
    monkeypatch.setattr("dh_keras.training.loop.resolve_model", resolve)
    output = tiny_run if resume else tmp_path / "run"
    with pytest.raises(TrainingError, match="enough"):
        train(load_config(overrides=tiny_overrides), output=output, resume=resume)
    assert calls == ["a GPU True", "preset"]


def test_a_batch_must_divide_among_the_replicas(
    monkeypatch, tmp_path, tiny_overrides, shapes_arguments, short_training
):
    class Three:
        num_replicas_in_sync = 3
        cluster_resolver = None

        def scope(self):
            return keras.name_scope("scope")

    monkeypatch.setattr("dh_keras.training.loop.make_strategy", lambda name: Three())
    config = load_config(overrides=[*tiny_overrides, *shapes_arguments, *short_training])
    with pytest.raises(TrainingError, match=r"data\.batch_size: expected a multiple of the 3 replicas, got 2"):
        train(config, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
