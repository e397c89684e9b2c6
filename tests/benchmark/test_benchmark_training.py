"""The benchmark of training: planted foreground, and what a run reports."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from dh_keras.benchmark import machine, peer, training, training_benchmark
from dh_keras.benchmark.case import Case
from dh_keras.benchmark.training import build_trainee, make_training_batch, near_boxes, plant
from dh_keras.commands.benchmark import main
from dh_keras.config.load import load_config
from dh_keras.modeling.proposals import Proposals

ROOT = Path(__file__).resolve().parents[2]
TINY = Case(height=96, width=128, batch=2, rois=16, boxes=3)


@pytest.fixture
def config(tiny_overrides):
    return load_config(overrides=[*tiny_overrides, "model.conv_head.norm=frozen"]).model


@pytest.fixture
def script(monkeypatch):
    """Return a function that runs the command."""
    return lambda *arguments: main(arguments)


def row(case, **values):
    measured = {"total_ms": 2000.0, "gflop": 500.0, "gemm_gflops": 500.0, "peak_memory_mb": 1500.0}
    return {**case.to_dict(), **measured, "head_rois": {"fc": 512, "conv": 128}, "stage_ms": {}, **values}


def test_planted_proposals_lie_near_the_boxes_and_come_first():
    gt_boxes = make_training_batch(TINY)["gt_boxes"]
    near = near_boxes(gt_boxes, 7).numpy()
    truth = gt_boxes.numpy()[:, [0, 1, 2, 0, 1, 2, 0]]
    low, high = np.maximum(near[..., :2], truth[..., :2]), np.minimum(near[..., 2:], truth[..., 2:])
    overlap = np.prod(high - low, axis=-1)
    area = np.prod(truth[..., 2:] - truth[..., :2], axis=-1)
    assert (overlap / (2 * area - overlap)).min() > 0.8
    assert truth.min() >= 0
    assert np.all(truth[..., 2:] <= [TINY.height, TINY.width])
    proposals = Proposals(tf.ones([2, 9, 4]), tf.zeros([2, 9]), tf.zeros([2, 9], tf.bool))
    planted = plant(proposals, tf.constant(near))
    np.testing.assert_array_equal(planted.boxes[:, :7], near)
    np.testing.assert_array_equal(planted.boxes[:, 7:], np.ones([2, 2, 4]))
    np.testing.assert_array_equal(planted.valid, [[True] * 7 + [False] * 2] * 2)


def test_a_measured_step_has_full_foreground_and_leaves_the_weights_alone(config, monkeypatch):
    monkeypatch.setattr(machine, "GEMM_SIZE", {"cpu": 64, "gpu": 64})
    kept = {}

    def build(*inputs):
        detector = build_trainee(*inputs)
        kept.update({"detector": detector, "before": [v.numpy() for v in detector.trainable_variables]})
        return detector

    monkeypatch.setattr(training, "build_trainee", build)
    measured = training.measure_training(config, TINY, repeats=1, stages=True)
    assert measured["head_rois"] == {"fc": 2 * 16, "conv": 2 * 16 * config.roi.foreground_fraction}
    assert set(measured["stage_ms"]) == set(training.STAGES)
    assert sum(measured["stage_ms"].values()) == pytest.approx(measured["total_ms"])
    assert {key: measured[key] for key in TINY.to_dict()} == TINY.to_dict()
    assert measured["gflop"] > 0
    for variable, before in zip(kept["detector"].trainable_variables, kept["before"], strict=True):
        np.testing.assert_array_equal(variable, before)


def test_the_script_measures_each_mode_and_writes_ratios(script, monkeypatch, tmp_path, capsys):
    seen = []

    def isolated(function, *inputs, **options):
        case = inputs[1]
        seen.append((function.__name__, case, options))
        return row(case)

    def of_peer(function, name, case, **options):
        seen.append((function.__name__, case, options))
        measured = {"total_ms": 4000.0, "gemm_gflops": 500.0, "peak_memory_mb": 1.0}
        return {"name": name, **case.to_dict(), **measured}

    monkeypatch.setattr(training_benchmark, "run_isolated", isolated)
    monkeypatch.setattr(peer, "run_isolated", of_peer)
    output = tmp_path / "benchmark.json"
    script("--train", "--peer", "model_garden", "--output", str(output), "model.conv_head.norm=frozen")
    ours = [(case.height, case.batch, case.precision, case.recompute) for name, case, _ in seen[:6]]
    modes = [("float32", False), ("mixed_bfloat16", False), ("float32", True)]
    assert ours == [(height, batch, *mode) for height, batch in ((800, 1), (512, 2)) for mode in modes]
    assert [options["stages"] for _, _, options in seen[:6]] == [True, False, False] * 2
    assert [name for name, _, _ in seen[6:]] == ["_measure_training"] * 2
    written = json.loads(output.read_text())
    assert written["runs"] == [row(case) for _, case, _ in seen[:6]]
    assert [found["total_ms"] for found in written["peers"]] == [4000.0, 4000.0]
    printed = capsys.readouterr().out
    assert "2000 ms, 500 GFLOP, 50.0% of the matrix product's 500 GFLOP/s" in printed
    assert printed.count("ours: 2000 ms, 0.50 times the peer's time at equal rates") == 2


def test_a_step_that_leaves_something_of_the_published_one_out_says_so():
    case = Case(height=64, width=64)
    line = "left out: background RoIs, in a head that only places boxes"
    assert line in training_benchmark.format_training_row(row(case))
    assert line not in training_benchmark.format_training_row(row(case, head_rois={"fc": 512, "conv": 512}))


def test_growth_changes_one_thing_at_a_time(script, monkeypatch, capsys):
    monkeypatch.setattr(
        training_benchmark,
        "run_isolated",
        lambda function, config, case, **options: row(case, total_ms=1000.0 * case.batch),
    )
    script("--train", "--growth")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines if line.startswith(("1 ", "2 ", "4 "))][:3] == [
        ["1", "1000", "1.00"],
        ["2", "2000", "2.00"],
        ["4", "4000", "4.00"],
    ]
    cases = training_benchmark.growth_cases()
    assert len(cases) == 9
    base = training_benchmark.GROWTH_BASE.to_dict()
    changed = [{key for key, value in case.to_dict().items() if value != base[key]} for case in cases]
    assert all(len(keys - {"width"}) <= 1 for keys in changed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--train", "--surviving", "3"), "error: --surviving and --precision: of inference only"),
        (("--growth",), "error: --growth: needs --train"),
        (("--train", "--growth", "--batches", "2"), "error: --growth: needs --train"),
    ],
)
def test_options_that_do_not_go_together_are_refused(script, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        script(*arguments)
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith(message)
