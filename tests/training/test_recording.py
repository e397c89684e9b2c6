"""What is on the disk at any moment of a run: nothing lost, nothing twice, nothing half written."""

import gc
import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training.run_comparison import differences, events_of, rows_of

from dh_keras.config.load import load_config
from dh_keras.errors import WriteError
from dh_keras.modeling.constants import LOSS_NAMES
from dh_keras.modeling.optimizer import RecipeSGD
from dh_keras.run.run_folder import RunFolder
from dh_keras.run.weights import save_weights
from dh_keras.training import recording
from dh_keras.training.callbacks import RunRecorder
from dh_keras.training.progress import Progress, ProgressBar
from dh_keras.training.recording import COLUMNS, VALIDATION_LOSSES, EventWriter, append_row, drop_rows_after
from dh_keras.training.resume import cut_back, load_state, save_state
from dh_keras.training.schedule import Length

LENGTH = Length(steps=5, epochs=2, steps_per_epoch=3)
APS = {3: 0.1, 5: 0.3}
CONFIG = load_config(overrides=["train.evaluate_every=1", "train.checkpoint_every=2"])


class Crash(BaseException):
    """The process is gone."""


def make_model():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(64)])
    model.compile(optimizer=RecipeSGD(0.1))
    model.optimizer.build(model.trainable_variables)
    return model


def age_events(folder):
    """Name event files as of long ago: their order is that of the seconds, and starting again takes longer than one."""
    for path in folder.rglob("events.out.tfevents.1*"):
        path.rename(path.with_name(path.name.replace("tfevents.1", "tfevents.0", 1)))


def simulate(folder, model):
    """A run whose weights and losses are functions of the step, from its state if it has one."""
    state = folder / "state.npz"
    age_events(folder)
    progress = Progress.from_dict(load_state(model, state), LENGTH) if state.is_file() else Progress()
    run = RunFolder(folder, CONFIG, ())
    cut_back(run, progress)
    bar = ProgressBar(progress=progress, batch_size=2, length=LENGTH, show=False)

    def evaluate():
        return dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm", "APl", *VALIDATION_LOSSES), APS[progress.step])

    recorder = RunRecorder(
        run=run,
        progress=progress,
        length=LENGTH,
        progress_bar=bar,
        evaluate=evaluate,
        settle=lambda: None,
    )
    recorder.set_model(model)
    model.stop_training = False
    if not state.is_file():
        save_state(model, progress.as_dict(), state)
    if progress.is_at_end_of_epoch(LENGTH):
        recorder.record_epoch()
    while progress.step < LENGTH.steps:
        step = progress.step + 1
        for variable in (*model.trainable_variables, *model.optimizer.momentums):
            variable.assign(np.full(variable.shape, step / 7, np.float32))
        losses = {name: 1 / (step + place) for place, name in enumerate((*LOSS_NAMES, "total_loss"))}
        progress.add_step(losses)
        recorder.on_train_batch_end(step, losses)
        if progress.is_at_end_of_epoch(LENGTH):
            recorder.on_epoch_end(0)
    return recorder


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model):
    """A simulated run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    simulate(folder, model)
    return folder


@pytest.fixture(autouse=True, scope="module")
def steps_of_events():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dh_keras.training.callbacks.EVENT_STEPS", 2)
        yield


def test_losses_in_the_table_are_the_means_of_their_epoch(whole):
    rows = rows_of(whole)
    assert [(row["step"], row["epoch"]) for row in rows] == [("3", "1"), ("5", "2")]
    for row, steps in zip(rows, [(1, 2, 3), (4, 5)], strict=True):
        for place, name in enumerate((*LOSS_NAMES, "total_loss")):
            assert row[name] == f"{np.mean([1 / (step + place) for step in steps]):.6g}"
    for name in ("AP", "val_fc_class_loss", "val_total_loss"):
        assert [row[name] for row in rows] == ["0.1", "0.3"]
    by_step = [(step, value) for step, tag, value in events_of(whole) if tag == "step/total_loss"]
    assert by_step == [(step, pytest.approx(1 / (step + 6))) for step in (2, 4)]
    assert json.loads(str(np.load(whole / "state.npz")["progress"]))["best_ap"] == 0.3


def test_a_crash_before_any_write_loses_nothing_and_doubles_nothing(tmp_path, model, whole, monkeypatch):
    replace, crashed = os.replace, 0
    for crash_at in range(1, 100):
        folder, writes = tmp_path / str(crash_at), 0
        folder.mkdir()

        def replace_or_crash(source, target, crash_at=crash_at):
            nonlocal writes
            writes += 1
            if writes == crash_at:
                raise Crash
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace_or_crash)
            try:
                simulate(folder, model)
            except Crash:
                crashed += 1
        if writes < crash_at:
            break
        simulate(folder, model)
        assert not any(differences(folder, whole).values()), crash_at
    assert crashed == 13


def test_a_half_written_state_or_leftover_is_never_taken_for_a_whole_one(tmp_path, model, whole):
    (tmp_path / ".partial-state.npz").write_bytes((whole / "state.npz").read_bytes()[:100])
    (tmp_path / ".partial-best.weights.h5").write_bytes(b"x")
    simulate(tmp_path, model)
    assert not any(differences(tmp_path, whole).values())
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".partial")]


def test_rows_after_the_checkpoint_and_a_half_written_one_are_dropped(tmp_path):
    table = tmp_path / "metrics.csv"
    for step in (3, 6, 9):
        append_row(table, {"step": step, "epoch": step // 3, "AP": step / 10})
    text = table.read_text()
    table.write_text(text[: text.rindex("9,3") + 6])
    drop_rows_after(table, 9)
    assert table.read_text().splitlines() == text.splitlines()[:3]
    table.write_text(text)
    drop_rows_after(table, 3)
    assert table.read_text().splitlines() == text.splitlines()[:2]
    assert text.splitlines()[0] == ",".join(COLUMNS)


def test_tensorboard_shows_each_step_once_even_when_the_last_event_is_half_written(tmp_path):
    folder = tmp_path / "tensorboard" / "steps"
    writer = EventWriter(folder, first_step=1)
    for step in (2, 4, 6, 8, 10):
        writer.write(step, {"total_loss": float(step), "AP": None})
    writer.flush()
    path = next(folder.iterdir())
    path.write_bytes(path.read_bytes()[:-7])
    assert events_of(tmp_path) == [(step, "total_loss", step) for step in (2, 4, 6, 8)]
    age_events(folder)
    writer = EventWriter(folder, first_step=7)
    writer.flush()
    assert events_of(tmp_path) == [(step, "total_loss", step) for step in (2, 4, 6)]
    for step in (8, 10):
        writer.write(step, {"total_loss": step / 10})
    writer.flush()
    expected = [(2, 2.0), (4, 4.0), (6, 6.0), (8, np.float32(0.8)), (10, 1.0)]
    assert [(step, value) for step, _, value in events_of(tmp_path)] == expected
    shown = EventAccumulator(str(folder)).Reload().Scalars("total_loss")
    assert [(event.step, event.value) for event in shown] == expected


def test_a_writer_that_is_forgotten_while_a_graph_is_traced_closes_its_file_and_leaves_the_graph_alone(tmp_path):
    writers = [EventWriter(tmp_path / "tensorboard", first_step=1)]
    writers[0].write(3, {"total_loss": 0.5})

    @tf.function
    def traced():
        writers.clear()
        gc.collect()
        return tf.constant(1)

    operations = {op.type for op in traced.get_concrete_function().graph.get_operations()}
    assert "CloseSummaryWriter" not in operations
    assert events_of(tmp_path) == [(3, "total_loss", 0.5)]


def test_a_file_that_the_disk_does_not_take_is_named_and_the_old_one_stays(tmp_path, model, small_files):
    state, weights, table = tmp_path / "state.npz", tmp_path / "best.weights.h5", tmp_path / "metrics.csv"
    save_state(model, {"step": 1}, state)
    save_weights(model, weights)
    append_row(table, {"step": 1})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    writes = {
        state: lambda: save_state(model, {"step": 2}, state),
        weights: lambda: save_weights(model, weights),
        table: lambda: append_row(table, {"step": 2}),
    }
    errors = {}
    small_files()
    for path, write in writes.items():
        with pytest.raises(WriteError) as error:
            write()
        errors[path] = str(error.value)
    for path, message in errors.items():
        advice = "File too large; raise the limit on the size of a file (ulimit -f)"
        assert message == f"{path}: cannot be written: {advice}"
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert load_state(model, state) == {"step": 1}


def test_a_writer_whose_file_the_disk_never_took_goes_in_silence():
    recording._close(tf.raw_ops.SummaryWriter(shared_name="never made"))


def test_events_that_the_disk_does_not_take_are_reported(tmp_path, small_files):
    writer = EventWriter(tmp_path, first_step=1)
    small_files()

    def write():
        for step in range(100):
            writer.write(step, {"loss": 1.0})
            writer.flush()

    with pytest.raises(WriteError, match=r"cannot be written: File too large"):
        write()
