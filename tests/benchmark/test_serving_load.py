"""The load on what serves: every answer is the request's own, every fault is told, and a wrong answer is seen."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from dh_keras.benchmark import serving_load
from dh_keras.commands.benchmark import main
from dh_keras.inference.detector import Detector

THREADS = 8


@pytest.fixture(scope="module")
def loaded(tiny_export):
    """A detector, requests that have an answer, their answers, and requests that have none."""
    detector = Detector.load(tiny_export)
    good, bad = serving_load.make_requests([1, 3], seed=0)
    return detector, good, [detector.detect_files(request.files) for request in good], bad


def run_load(loaded, detector=None, **options):
    options = {"threads": THREADS, "seconds": 2.0, "bad": 0.3, "seed": 0} | options
    return serving_load.run_load(detector or loaded[0], *loaded[1:], **options)


def test_eight_threads_with_bad_requests_get_what_each_request_gets_alone(tiny_export, tmp_path, capsys):
    output = tmp_path / "load.json"
    options = ["--minutes", "0.03", "--bad", "0.3", "--batches", "1", "2", "4", "--output", str(output)]
    main(["--serve", str(tiny_export), "--threads", "1", str(THREADS), *options])
    written = json.loads(output.read_text())
    assert written["model"] == str(tiny_export)
    assert written["detections"] > 100
    assert [run["threads"] for run in written["runs"]] == [1, THREADS]
    for run in written["runs"]:
        assert run["wrong"] == []
        assert run["exact"] == run["requests"] >= run["threads"] / 2
        assert run["requests"] <= run["photographs"] <= 4 * run["requests"]
        assert run["requests_per_second"] == pytest.approx(run["requests"] / run["seconds"])
        assert run["p50_ms"] <= run["p99_ms"]
    assert sum(run["refused"] for run in written["runs"]) > 0
    start, half, end = written["runs"][1]["memory_mb"]
    assert end - half < 50
    assert end - start < 150
    assert serving_load.format_run(written["runs"][1]) in capsys.readouterr().out


def test_requests_have_all_sizes_and_every_fault():
    good, bad = serving_load.make_requests([1, 3], seed=0)
    assert sorted(len(request.files) for request in good) == [1] * 8 + [3] * 8
    shapes = {tuple(tf.io.decode_image(file).shape) for request in good for file in request.files}
    assert len(shapes) > 5
    assert {file[:2] for request in good for file in request.files} == {b"\xff\xd8", b"\x89P"}
    assert [len(request.files) for request in bad] == [1] * 5 + [3] * 5
    errors = {request.error for request in bad}
    assert errors >= {"Invalid JPEG data", "of other kinds or empty: number [0] of the batch"}
    assert len(errors) > 2


class Disturbed:
    """A detector whose first answer is changed by a function."""

    def __init__(self, detector, change):
        self.detector, self.change, self.count = detector, change, 0

    def detect_files(self, files):
        self.count += 1
        return self.change(self, files) if self.count == 1 else self.detector.detect_files(files)


def moved(self, files):
    first, *others = self.detector.detect_files(files)
    return [dataclasses.replace(first, boxes=first.boxes + np.float32(1.0)), *others]


def nearly(self, files):
    first, *others = self.detector.detect_files(files)
    return [dataclasses.replace(first, scores=first.scores * np.float32(1.0001)), *others]


def failing(self, files):
    raise tf.errors.InvalidArgumentError(None, None, "another's\nfault")


@pytest.mark.parametrize(
    ("change", "bad", "line"),
    [
        (moved, 0.0, "or others"),
        (lambda self, files: self.detector.detect_files(files)[1:], 0.0, "alone"),
        (failing, 0.0, "a good request got an error: another's fault"),
        (failing, 0.9999, "got another's fault"),
        (lambda self, files: [], 0.9999, "got an answer"),
    ],
)
def test_a_wrong_answer_is_told(loaded, change, bad, line):
    run = run_load(loaded, Disturbed(loaded[0], change), threads=1, seconds=0.5, bad=bad)
    assert len(run["wrong"]) == 1
    assert line in run["wrong"][0]


def test_an_answer_within_the_tolerance_of_an_export_is_not_exact_but_right(loaded):
    run = run_load(loaded, Disturbed(loaded[0], nearly), threads=1, seconds=0.5, bad=0.0)
    assert run["wrong"] == []
    assert run["exact"] == run["requests"] - 1


def test_a_wrong_answer_ends_the_command_after_the_results_are_written(tiny_export, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(serving_load, "_are_equal", lambda *pair: False)
    monkeypatch.setattr(serving_load, "match_detections", lambda *pair: [])
    output = tmp_path / "load.json"
    with pytest.raises(SystemExit) as stopped:
        main(
            ["--serve", str(tiny_export), "--threads", "1", "--minutes", "0.005", "--bad", "0", "--output", str(output)]
        )
    assert stopped.value.code == 1
    count = len(json.loads(output.read_text())["runs"][0]["wrong"])
    assert capsys.readouterr().err.startswith(f"error: {tiny_export}: {count} answers are wrong, the first: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--threads", "2"), "--threads, --minutes and --bad: need --serve MODEL"),
        (("--serve", "m", "--train"), "--serve: takes --threads"),
        (("--serve", "m", "model.max_detections=3"), "--serve: takes --threads"),
        (("--serve", "m", "--threads", "0"), "--repeats, --batches and --threads: expected at least 1"),
        (("--serve", "m", "--minutes", "0"), "--minutes and --bad: expected more than 0, and 0 to less than 1, got 0"),
        (("--serve", "m", "--minutes", "nan"), "--minutes and --bad: expected"),
        (("--serve", "m", "--bad", "1"), "--minutes and --bad: expected"),
        (("--serve", "m"), "m: no such folder; expected a run folder or a SavedModel"),
    ],
)
def test_options_of_the_load_are_refused_in_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
