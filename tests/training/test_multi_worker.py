"""Two processes train as one does; evaluation in shares; signals and differences between workers."""

import re
import signal
import types
from dataclasses import replace

import numpy as np
import pytest
from local_workers import start_workers
from replica_table import ALL_ANCHORS
from test_workers import play

from dh_keras.config.load import load_config
from dh_keras.config.schema import EvaluateConfig
from dh_keras.errors import Interrupted
from dh_keras.evaluation.coco_metrics import evaluate_detections
from dh_keras.evaluation.image_detections import ImageDetections
from dh_keras.run.classes import Category
from dh_keras.training import loop
from dh_keras.training.loop import load_training_data, train
from dh_keras.training.signals import StopRequest
from dh_keras.training.workers.facts import config_facts, data_facts
from dh_keras.training.workers.shared_evaluation import evaluate_together, pack_detections, unpack_detections
from dh_keras.training.workers.workers import Workers

# Statistics of a worker's own images would differ from those of the whole batch.
JOB = (
    "model.backbone.norm=group",
    "model.conv_head.norm=group",
    # With every anchor and RoI in use nothing hangs on the rounding of a sum.
    *ALL_ANCHORS,
    "model.rpn.anchor_ratios=[1.0]",
    "data.min_size=64",
    "data.max_size=64",
    "train.epochs=null",
    "train.steps=3",
    "train.drops=[]",
    "train.pictures=0",
    "train.sanity_images=0",
)


@pytest.fixture(scope="module")
def data(shapes_arguments):
    config = load_config(overrides=list(shapes_arguments))
    return config, load_training_data(config)


def test_two_workers_take_the_steps_of_one_process(tmp_path, tiny_overrides, shapes_arguments):
    overrides = [*tiny_overrides, *shapes_arguments, *JOB]
    run = tmp_path / "two"
    workers = start_workers(2, ["--strategy", "multi_worker", "--output", run, *overrides], tmp_path / "logs")
    train(load_config(overrides=overrides), output=tmp_path / "one")
    statuses = [worker.wait(timeout=900) for worker in workers]
    logs = [(tmp_path / "logs" / f"{index}.txt").read_text() for index in range(2)]
    assert statuses == [0, 0], logs
    for log in logs:
        assert "all 2 workers are there" in log
    assert "written: " in logs[0]
    assert "written: " not in logs[1]
    with np.load(run / "state.npz") as ours, np.load(tmp_path / "one" / "state.npz") as theirs:
        names = [name for name in theirs.files if name != "progress"]
        assert len(names) > 50
        for name in names:
            np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4, err_msg=name)
    numbers = [re.findall(r"[\d.]+", path.read_text().splitlines()[1]) for path in metrics_of(tmp_path)]
    # Step, epoch, losses in training and on the validation images, learning rate.
    assert [float(n) for n in numbers[0][:17]] == pytest.approx([float(n) for n in numbers[1][:17]], rel=1e-4)


def metrics_of(folder):
    return [folder / name / "metrics.csv" for name in ("two", "one")]


class FakeDetector:
    """Finds the ground truth of its share, moved a little, with scores that depend on the image."""

    def __init__(self, dataset, entries):
        self.entries = entries
        self.model = types.SimpleNamespace(non_trainable_weights=[])
        self.max_detections = 100
        self.batch_sizes = []

    def detect_dataset(self, dataset, *, batch_size, on_images=None, shard=(0, 1), first=None):
        self.batch_sizes.append(batch_size)
        mine = self.entries[shard[0] :: shard[1]]
        for _ in mine:
            if on_images:
                on_images(1)
        return {"detections": mine} if mine else {}


def moved_truth(dataset):
    random = np.random.default_rng(0)
    entries = []
    for index, image_id in enumerate(dataset.image_ids):
        boxes = dataset.boxes_of(index) + random.uniform(-6, 6, dataset.boxes_of(index).shape).astype(np.float32)
        classes = random.permutation(dataset.classes_of(index))
        entries.append(
            ImageDetections(
                boxes=np.sort(boxes.reshape(-1, 2, 2), 1).reshape(-1, 4),
                scores=random.random(len(boxes)).astype(np.float32),
                classes=classes,
                known=dataset.categories,
                image_id=int(image_id),
            )
        )
    return entries


def test_detections_survive_the_journey():
    known = (Category(2, "cell"), Category(5, "plate"))
    one = ImageDetections(
        boxes=np.ones((1, 4), np.float32),
        scores=np.ones(1, np.float32),
        classes=np.array([1], np.int32),
        known=known,
        image_id=2**40,
    )
    empty = replace(one.above(2.0), image_id=7)
    back = unpack_detections(pack_detections([empty, one]), known)
    assert [entry.image_id for entry in back] == [7, 2**40]
    assert back[1].categories == ("plate",)
    for ours, theirs in zip(back, [empty, one], strict=True):
        for name in ("boxes", "scores", "classes"):
            assert getattr(ours, name).dtype == getattr(theirs, name).dtype
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert unpack_detections(pack_detections([]), known) == []


@pytest.mark.parametrize("count", [2, 3])
def test_evaluation_in_shares_gives_the_metrics_of_one_process(data, count):
    config, splits = data
    entries = moved_truth(splits.val)
    expected = evaluate_detections(splits.val, entries, max_detections=config.model.max_detections)
    assert 0.05 < expected["AP"] < 0.95
    results, lost, _ = play(
        count, lambda met: evaluate_together(FakeDetector(splits.val, entries), splits.val, config, workers=met)
    )
    assert results == [expected] * count
    assert lost == {}


def test_training_measures_in_batches_of_their_own_key(data):
    config, splits = data
    config = replace(config, evaluate=EvaluateConfig(batch_size=3))
    detector = FakeDetector(splits.val, moved_truth(splits.val))
    evaluate_together(detector, splits.val, config, workers=Workers())
    job = types.SimpleNamespace(
        model=None, detector=detector, data=splits, workers=Workers(), run=types.SimpleNamespace(config=config)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "format_model_table", lambda model: "")
        loop._look_first(job)
    assert detector.batch_sizes == [3, 3]


def test_a_signal_to_one_worker_ends_the_evaluation_on_all(data):
    config, splits = data
    entries = moved_truth(splits.val)

    def act(met):
        stop = StopRequest(lambda: 12, "COMMAND")
        if met.index == 1:
            stop.number = signal.SIGTERM
        try:
            evaluate_together(FakeDetector(splits.val, entries), splits.val, config, workers=met, stop=stop)
        except Interrupted as error:
            return str(error), error.status

    results, lost, _ = play(2, act)
    assert results == [("stopped by SIGTERM after step 12; go on with: COMMAND", 143)] * 2
    assert lost == {}


def test_a_signal_to_one_worker_is_known_to_all_after_the_same_step():
    def act(met):
        stop, steps = StopRequest(lambda: 0, ""), 0
        while stop.number is None:
            steps += 1
            if met.index == 2 and steps == 4:
                stop.number = signal.SIGINT
            stop.agree(met)
        return steps, stop.number

    results, _, _ = play(3, act)
    assert results == [(4, signal.SIGINT)] * 3


def test_what_may_differ_and_what_may_not(data, tmp_path):
    config, splits = data
    ours = config_facts(config)
    assert ours["data.batch_size"] == config.data.batch_size
    assert ours["model.rpn.anchor_ratios"] == [0.5, 1.0, 2.0]
    other = load_config(overrides=["data.shapes.directory=/elsewhere", "train.lr=0.5"])
    theirs = config_facts(other)
    assert {key for key in ours if ours[key] != theirs[key]} == {"train.lr"}
    facts = data_facts(splits.train, splits.val)
    assert facts["list of classes"] == [[category.id, category.name] for category in splits.train.categories]
    splits.val.boxes[0, 0] += 1
    changed = data_facts(splits.train, splits.val)
    splits.val.boxes[0, 0] -= 1
    assert [key for key in facts if facts[key] != changed[key]] == [
        "checksum of the validation images' names, sizes and boxes"
    ]
    (tmp_path / "pipeline.yaml").write_text("another")
    changed = data_facts(splits.train, splits.val, str(tmp_path / "pipeline.yaml"))
    assert [key for key in facts if facts[key] != changed[key]] == ["checksum of data.augment_file"]
