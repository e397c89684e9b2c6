"""What a run is resumed with, and what is refused; what is shown before and during training."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from dh_keras.config.load import load_config
from dh_keras.data.dataset import CocoDataset
from dh_keras.data.splits import load_splits
from dh_keras.errors import ConfigError, DataError, TrainingError
from dh_keras.inference.detector import Detector
from dh_keras.modeling.builder import assemble_detector
from dh_keras.modeling.constants import LOSS_NAMES
from dh_keras.modeling.optimizer import RecipeSGD
from dh_keras.run.classes import Category
from dh_keras.run.run_folder import RunFolder, open_run
from dh_keras.training.look import check_evaluation, format_model_table, model_rows
from dh_keras.training.progress import Progress, ProgressBar
from dh_keras.training.resume import (
    MAY_CHANGE,
    check_classes,
    check_config,
    load_state,
    plan_fingerprint,
    restore,
    save_state,
)
from dh_keras.training.schedule import Length

LENGTH = Length(steps=25, epochs=3, steps_per_epoch=10)


def test_every_key_that_differs_is_named_with_both_values(tmp_path):
    run = RunFolder(tmp_path, load_config(), ())
    check_config(load_config(), run)
    other = load_config(overrides=["train.lr=0.5", "model.rpn.anchor_ratios=[1,2]", "train.pictures=3"])
    with pytest.raises(ConfigError) as error:
        check_config(other, run)
    message = str(error.value)
    assert f"{tmp_path}/config.yaml is of another training: model.rpn.anchor_ratios is [" in message
    assert f", train.lr is {run.config.train.lr!r} there and 0.5 here; " in message
    assert message.endswith(f"start another run with --init {tmp_path}")
    assert "pictures" not in message
    assert "\n" not in message


def test_what_changes_no_step_may_change(tmp_path):
    changes = ["data.val_annotations=a", "data.val_images=b", "data.train_annotations=c", "data.train_images=d"]
    changes += ["train.checkpoint_every=7", "train.sanity_images=0", "train.pictures=0", "data.shapes.directory=e"]
    changes += ["data.augment_file=f"]
    changes += ["data.verify=headers", "evaluate.batch_size=2", "train.patience=3"]
    assert {change.split("=")[0] for change in changes} | {"data.train_tfrecords"} == set(MAY_CHANGE)
    check_config(load_config(overrides=changes), RunFolder(tmp_path, load_config(), ()))


def test_another_list_of_classes_is_refused_with_the_difference(tmp_path):
    cat, dog, cow = Category(1, "cat"), Category(2, "dog"), Category(3, "cow")
    run = RunFolder(tmp_path, load_config(), (cat, dog))
    check_classes([cat, dog], run, tmp_path / "a.json")
    faults = {
        (cat,): r"a\.json lacks 'dog' \(id 2\); resume",
        (cat, dog, cow): r"a\.json has 'cow' \(id 3\) besides; resume",
        (cat, Category(2, "hound")): r"a\.json lacks 'dog' \(id 2\) and .*a\.json has 'hound' \(id 2\) besides; resume",
        (dog, cat): "another order; resume",
    }
    for categories, message in faults.items():
        with pytest.raises(DataError, match=rf"--resume: .*classes\.json has other classes: .*{message}"):
            check_classes(categories, run, tmp_path / "a.json")


@pytest.fixture
def compiled():
    """Return a function that makes a small model with a built optimizer."""

    def make(*, loss_scale=False):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        optimizer = RecipeSGD(0.1)
        model.compile(optimizer=keras.optimizers.LossScaleOptimizer(optimizer) if loss_scale else optimizer)
        model.optimizer.build(model.trainable_variables)
        return model

    return make


def test_a_state_of_before_there_were_checkpoints_within_an_epoch_is_read(compiled, tmp_path):
    run = RunFolder(tmp_path, load_config(), ())
    save_state(compiled(), {"epoch": 2, "best_ap": 0.5}, tmp_path / "state.npz")
    progress = restore(compiled(), run, LENGTH, "x")
    assert progress == Progress(step=20, recorded_step=20, best_ap=0.5, loss_sums={}, plan="x")
    save_state(compiled(), {"epoch": 3, "best_ap": None}, tmp_path / "state.npz")
    assert restore(compiled(), run, LENGTH, "x").step == 25


def test_other_training_images_are_refused(compiled, tmp_path, tiny_shapes):
    run = RunFolder(tmp_path, load_config(), ())
    save_state(compiled(), Progress(step=3, plan="abc").as_dict(), tmp_path / "state.npz")
    assert restore(compiled(), run, LENGTH, "abc").step == 3
    with pytest.raises(TrainingError, match=r"state\.npz was written with other training images or boxes; resume with"):
        restore(compiled(), run, LENGTH, "abd")
    run.config.data.augment_file = "pipeline.yaml"
    with pytest.raises(TrainingError, match=r"resume with the annotations and the data\.augment_file of the run, or"):
        restore(compiled(), run, LENGTH, "abd")
    data = dataclasses.replace(
        load_config().data, train_annotations=tiny_shapes.train_annotations, train_images=tiny_shapes.train_images
    )
    dataset = load_splits(data)[0]
    plan = np.arange(6).reshape(3, 2)
    same = plan_fingerprint(dataset, plan)
    assert same == plan_fingerprint(load_splits(data)[0], plan)
    assert same == plan_fingerprint(dataset, [plan[:2], plan[2:]])  # by epochs
    assert same != plan_fingerprint(dataset, plan[::-1])
    file = tmp_path / "pipeline.yaml"
    file.write_text("a: 1")
    augmented = plan_fingerprint(dataset, plan, str(file))
    assert augmented != same
    file.write_text("a: 2")
    assert augmented != plan_fingerprint(dataset, plan, str(file))
    dataset.boxes[0, 0] += 0.5
    assert same != plan_fingerprint(dataset, plan)


def test_the_loss_scale_is_a_part_of_the_state(compiled, tmp_path):
    model = compiled(loss_scale=True)
    for place, variable in enumerate(model.optimizer.variables):
        variable.assign(np.full(variable.shape, 5 + place, variable.dtype))
    save_state(model, {}, tmp_path / "state.npz")
    other = compiled(loss_scale=True)
    load_state(other, tmp_path / "state.npz")
    names = [variable.path for variable in other.optimizer.variables]
    assert any("dynamic_scale" in name for name in names)
    assert any("momentum" in name for name in names)
    for ours, theirs in zip(other.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=ours.path)


def test_progress_survives_json_to_the_last_bit_and_knows_the_end_of_an_epoch():
    progress = Progress(best_ap=0.1)
    for step in range(10):
        assert not progress.is_at_end_of_epoch(LENGTH)
        progress.add_step({name: np.float32(0.1) * (step + 1) for name in (*LOSS_NAMES, "total_loss")})
    assert progress.is_at_end_of_epoch(LENGTH)
    assert progress.mean_losses()["total_loss"] == pytest.approx(0.55, rel=1e-6)
    assert Progress.from_dict(json.loads(json.dumps(progress.as_dict())), LENGTH) == progress
    progress.record_epoch()
    assert (progress.recorded_step, progress.loss_sums) == (10, {})
    assert not progress.is_at_end_of_epoch(LENGTH)
    assert Progress(step=25, recorded_step=20).is_at_end_of_epoch(LENGTH)


def test_the_bar_shows_speed_waiting_time_left_and_memory(monkeypatch, capsys):
    clock = iter([0.0, 9.0, 10.0, 12.0, 20.0, 22.0])
    monkeypatch.setattr("dh_keras.training.progress.time.time", lambda: next(clock))
    progress = Progress(step=10, recorded_step=10)
    bar = ProgressBar(progress=progress, batch_size=4, length=LENGTH)
    bar.on_epoch_begin(1)
    losses = dict.fromkeys((*LOSS_NAMES, "total_loss"), 0.25)
    # The first step takes nine seconds and says nothing about speed; the clock is asked for it only once.
    for waited in (8.0, 0.5, 1.75):
        bar.on_train_batch_begin(0)
        progress.add_step(losses)
        bar.on_train_batch_end(0, {**losses, "data_wait": waited})
    bar.on_epoch_end(1)
    signs = bar.vital_signs()
    assert signs["data_wait"] == pytest.approx((0.5 + 1.75) / 9)
    assert signs["images_per_second"] == pytest.approx(2 * 4 / 9)
    assert signs["seconds_left"] == pytest.approx(12 * 4.5)
    assert 0.2 < signs["memory_gb"] < 50
    shown = capsys.readouterr().err
    assert "epoch 2/3" in shown
    assert all(word in shown for word in ("images/s=0.9", "wait=", "left=00:54", "memory=", "GB", "loss=0.250"))


def test_parts_of_the_model_add_up(tiny_overrides):
    config = load_config(overrides=[*tiny_overrides, "model.variant=double_fc"])
    model = assemble_detector(config.model, num_classes=3)
    rows = {row[0]: row[1:] for row in model_rows(model)}
    assert list(rows) == ["backbone", "fpn", "rpn_head", *(spec.name for spec in model.variant.heads), "total"]
    assert rows["total"][0] == model.count_params()
    assert rows["total"][1] == sum(variable.numpy().size for variable in model.trainable_variables)
    classes, boxes = (spec.name for spec in model.variant.heads)
    hidden = 49 * 16 * 16 + 16 * 16  # 49 cells of 16 channels, two layers of 16, then 4 class logits or 3 boxes
    assert rows[classes][0] == hidden + 2 * 16 + 16 * 4 + 4
    assert rows[boxes][0] == hidden + 2 * 16 + 16 * 12 + 12
    text = format_model_table(model)
    assert f"{model.count_params():,}" in text


def test_the_first_evaluation_changes_nothing_and_finds_a_broken_evaluator(tiny_run, monkeypatch, capsys):
    run = open_run(tiny_run)
    model = assemble_detector(run.config.model, num_classes=len(run.categories))
    detector = Detector.from_model(model, run.categories, min_size=96, max_size=128)
    val: CocoDataset = load_splits(run.config.data)[1]
    before = [variable.numpy() for variable in model.variables]
    seed = tf.random.get_global_generator().state.numpy()
    metrics = check_evaluation(detector, val, count=2)
    assert metrics["images"] == 2
    assert "evaluation works: 2 validation images" in capsys.readouterr().out
    assert all(np.array_equal(a, b) for a, b in zip(model.variables, before, strict=True))
    np.testing.assert_array_equal(tf.random.get_global_generator().state.numpy(), seed)
    found = detector(np.zeros((96, 96, 3), np.uint8))
    wrong = dataclasses.replace(found, classes=np.full(len(found), 99, np.int32))
    monkeypatch.setattr(detector, "_read", lambda outputs: [wrong])
    with pytest.raises(ValueError, match="classes from 0 to 2"):
        check_evaluation(detector, val, count=2)
