"""The benchmark of inference: its JSON, and forced numbers of surviving RoIs."""

import functools
import json
from pathlib import Path

import pytest
import tensorflow as tf

from dh_keras.benchmark import inference_benchmark, machine, model_garden, peer
from dh_keras.benchmark.stages import STAGES, best_scores, measure
from dh_keras.benchmark.workload import build_model, make_batch, threshold_for
from dh_keras.commands.benchmark import main
from dh_keras.config.load import load_config
from dh_keras.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TINY_CONFIG = ROOT / "configs" / "shapes_tiny.yaml"
HEIGHT, WIDTH = 96, 128


@pytest.fixture
def script(monkeypatch, tiny_overrides):
    """Return a function that runs the command on a tiny detector."""
    monkeypatch.setattr(machine, "GEMM_SIZE", {"cpu": 64, "gpu": 64})

    def run(*arguments):
        tiny = ["--config", str(TINY_CONFIG), *tiny_overrides, "--repeats", "1", "--sizes", f"{HEIGHT}x{WIDTH}"]
        main([*tiny, *arguments])

    return run


@pytest.fixture(scope="module")
def scored(tiny_overrides):
    """Return a function that gives a detector of a variant, two images and the scores of its RoIs, once for each."""

    @functools.cache
    def make(variant):
        config = load_config(overrides=[*tiny_overrides, f"model.variant={variant}"]).model
        batch = make_batch(height=HEIGHT, width=WIDTH, batch=2)
        detector = build_model(config, num_classes=4, precision="float32", batch=batch)
        return detector, batch, best_scores(detector, batch)

    return make


@pytest.mark.parametrize(
    ("variant", "survivors", "seen_by_conv_head"),
    [("double_head", 7, 7), ("double_head", 0, 0), ("single_conv", 5, 48)],
)
def test_forced_survivors_are_real(scored, variant, survivors, seen_by_conv_head):
    detector, batch, scores = scored(variant)
    assert scores.shape == (2 * detector.rpn.post_nms_test,)
    for number in range(len(scores) + 1):
        assert (scores > threshold_for(scores, number)).sum() == number
    own_threshold = detector.score_threshold
    measurement = measure(detector, batch, threshold=threshold_for(scores, survivors), repeats=1)
    assert measurement.survivors == survivors
    assert len(measurement.rois["conv"]) == seen_by_conv_head
    assert len(measurement.rois.get("fc", scores)) == 48
    assert detector.score_threshold == own_threshold


def test_class_scores_and_levels_are_spread(tiny_overrides):
    config = load_config(overrides=tiny_overrides).model
    batch = make_batch(height=HEIGHT, width=WIDTH, batch=1)
    detector = build_model(config, num_classes=80, precision="float32", batch=batch)
    pyramid = detector.extract_features(batch, training=False)
    assert [float(tf.math.reduce_std(pyramid[level])) for level in ("P2", "P3", "P4", "P5")] == pytest.approx([1.0] * 4)
    scores = best_scores(detector, batch)
    assert len(set(scores)) == 24
    assert 2.0 / 80 < scores.mean() < 0.9


def test_the_json_has_what_was_promised(script, tmp_path, capsys):
    output = tmp_path / "new" / "benchmark.json"
    script("--batches", "1", "2", "--surviving", "0", "5", "--output", str(output))
    results = json.loads(output.read_text())
    assert set(results) == {"machine", "gemm_gflops", "gemm_measurements", "runs", "peer"}
    assert results["machine"]["tensorflow"] == tf.__version__
    assert results["machine"]["cores"] >= 1
    assert results["gemm_gflops"] == max(results["gemm_measurements"]["float32"]) > 0
    assert results["peer"] is None
    runs = results["runs"]
    assert [(run["batch"], run["surviving_rois"]) for run in runs] == [(b, n) for b in (1, 2) for n in (0, 5)]
    for run in runs:
        assert (run["height"], run["width"], run["precision"]) == (HEIGHT, WIDTH, "float32")
        assert tuple(run["stages"]) == STAGES
        assert run["necessary_gflop"] == pytest.approx(sum(stage["gflop"] for stage in run["stages"].values()))
        share = run["necessary_gflop"] / (run["total_ms"] / 1000) / results["gemm_gflops"]
        assert run["gemm_share"] == pytest.approx(share)
        assert run["peak_memory_mb"] > 100
    stages = [run["stages"] for run in runs]
    assert stages[0]["conv_head"]["gflop"] == 0 < stages[1]["conv_head"]["gflop"]
    for one, two in zip(stages[:2], stages[2:], strict=True):
        for name in ("backbone", "fpn", "rpn", "fc_head", "conv_head"):
            assert two[name]["gflop"] == pytest.approx(2 * one[name]["gflop"])
    printed = capsys.readouterr().out
    assert "machine: cpu" in printed
    assert "note:" not in printed  # exactly the wanted numbers of proposals and survivors
    assert f"written: {output}" in printed


def test_bfloat16_runs_and_is_compared_with_the_float32_product(script, tmp_path, capsys):
    output = tmp_path / "benchmark.json"
    script("--precision", "bfloat16", "--surviving", "3", "--output", str(output))
    results = json.loads(output.read_text())
    assert set(results["gemm_measurements"]) == {"float32", "bfloat16"}
    (run,) = results["runs"]
    assert run["precision"] == "bfloat16"
    assert run["surviving_rois"] == 3
    assert run["gemm_share"] == pytest.approx(run["necessary_gflop"] / run["total_ms"] * 1000 / results["gemm_gflops"])
    assert "GEMM bfloat16" in capsys.readouterr().out


def test_layers_compute_in_the_precision_that_was_asked_for(tiny_overrides):
    config = load_config(overrides=tiny_overrides).model
    batch = make_batch(height=64, width=64, batch=1)
    for precision in ("float32", "bfloat16"):
        detector = build_model(config, num_classes=2, precision=precision, batch=batch)
        features = detector.extract_features(batch, training=False)
        assert {value.dtype for value in features.values()} == {tf.as_dtype(precision)}


def test_default_survivors_are_a_tenth_of_the_proposals_and_all():
    config = load_config(ROOT / "configs" / "mmdetection_double_head_r50_fpn_1x_coco.yaml").model
    assert inference_benchmark.check_survivors(config, None) == [100, 1000]


def test_the_peer_is_measured_on_the_first_input_and_compared_with_its_runs(script, tmp_path, monkeypatch, capsys):
    def inference(config, batch, *, surviving, **options):
        size = dict(zip(("batch", "height", "width"), batch["images"].shape[:3], strict=True))
        run = {"precision": "float32", "total_ms": 3.0, "necessary_gflop": 1.0, "peak_memory_mb": 1.0, "stages": {}}
        return [{**size, **run, "surviving_rois": number} for number in surviving]

    def measured(name, *, repeats, **size):
        return {"name": name, **size, "proposals": 1000, "total_ms": 2.0}

    monkeypatch.setattr(inference_benchmark, "run_inference", inference)
    monkeypatch.setattr(inference_benchmark, "measure_peer", measured)
    output = tmp_path / "benchmark.json"
    script("--surviving", "2", "5", "--batches", "1", "2", "--peer", "model_garden", "--output", str(output))
    expected = {
        "name": "model_garden",
        "height": HEIGHT,
        "width": WIDTH,
        "batch": 1,
        "proposals": 1000,
        "total_ms": 2.0,
    }
    assert json.loads(output.read_text())["peer"] == expected
    printed = capsys.readouterr().out
    for number in (2, 5):
        assert f"{number} surviving RoIs, float32: 3.0 ms, 1.50 times the peer's time" in printed
    assert printed.count("times the peer's time") == 2


def test_peers_are_padded_to_multiples_of_their_last_stride():
    class Config:
        max_level = 6

    assert model_garden.padded_size(Config, tf.TensorShape([1, 800, 1344, 3])) == (832, 1344)


def test_both_gemm_rates_are_shown_when_they_differ():
    assert inference_benchmark.format_gemm({"float32": [100.0, 98.0]}) == "GEMM float32: 100 GFLOP/s"
    differing = inference_benchmark.format_gemm({"float32": [100.0, 80.0]})
    assert differing == "GEMM float32: 100 GFLOP/s (100 before the runs, 80 after)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--surviving", "25"), "--surviving: expected at most 24, the value of model.rpn.post_nms_test, got 25"),
        (("--batches", "0"), "--repeats, --batches and --threads: expected at least 1, got 0"),
        (("--output", str(TINY_CONFIG)), f"{TINY_CONFIG}: exists already and is not overwritten; choose another"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_runs(script, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(inference_benchmark, "gemm_gflops", lambda precision: pytest.fail("ran"))
    before = TINY_CONFIG.read_bytes()
    with pytest.raises(SystemExit) as stopped:
        script(*arguments)
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert TINY_CONFIG.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--peer", "yolo"), "argument --peer: invalid choice: 'yolo'"),
        (("--sizes", "100x128"), "argument --sizes: expected HEIGHTxWIDTH in multiples of 32, got '100x128'"),
        (("--sizes", "96"), "argument --sizes: expected HEIGHTxWIDTH in multiples of 32, got '96'"),
        (("--surviving", "-1"), "argument --surviving"),
        (("--precision", "float16"), "argument --precision: invalid choice: 'float16'"),
    ],
)
def test_bad_options_are_refused_by_the_parser(script, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        script(*arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model_garden", "mmdetection"])
def test_a_peer_that_is_not_there_ends_the_benchmark_before_it_measures(script, monkeypatch, capsys, name):
    monkeypatch.setattr(peer.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(SystemExit):
        script("--peer", name)
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: --peer {name}: is not installed here; it needs {peer.ADVICE[name]}")
    assert printed.out == ""


def test_a_peer_of_which_a_part_is_missing_is_one_line(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError("No module named 'mmcv._ext'")

    monkeypatch.setattr(peer.importlib, "import_module", absent)
    monkeypatch.setattr(peer, "run_isolated", lambda function, *inputs, **options: function(*inputs, **options))
    with pytest.raises(UserError, match=r"^--peer mmdetection: No module named 'mmcv._ext'; it needs MMDetection 3.3"):
        peer.measure_peer("mmdetection", height=64, width=64, batch=1, repeats=1)
