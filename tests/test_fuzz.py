"""Inputs that were changed at random: every fault is one line, quick, and without growth; see fuzz.py for more."""

import importlib.util

import fuzz
import pytest

from dh_keras.errors import DataError

SEEDS = {"checkpoints": 40, "tfrecords": 12}


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_what_was_changed_at_random_is_taken_or_one_line(kind, tmp_path):
    if kind == "checkpoints" and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is needed to write checkpoints")
    outcome = fuzz.run_kind(kind, tmp_path, mutations=SEEDS.get(kind, 100), seconds=6.0)
    assert outcome.faults == []
    assert sum(outcome.refused.values()) > 2


def raise_line(text):
    error = DataError("")
    error.args = (text,)
    raise error


@pytest.mark.parametrize(
    ("attempt", "fault"),
    [
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: raise_line("a\nb"), "not one line"),
        (lambda: [None for _ in iter(int, 1)], "TooSlow"),
    ],
)
def test_what_is_no_line_or_takes_too_long_is_a_fault(attempt, fault, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS_EACH", 0.2)
    monkeypatch.setitem(fuzz.KINDS, "bad", lambda folder: lambda random: attempt())
    outcome = fuzz.run_kind("bad", tmp_path, mutations=1)
    assert fault in outcome.faults[0][1]
