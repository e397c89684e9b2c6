"""The comparison of variants: its numbers, its files, and that it goes on where it was stopped."""

import csv
import math
import re
import shutil

import pytest
from PIL import Image

from dh_keras.commands.main import main
from dh_keras.config.load import DEFAULT_CONFIG
from dh_keras.errors import DataError
from dh_keras.reports.comparison import format_differences, format_table, measure_run, paired_difference
from dh_keras.run.run_folder import open_run
from dh_keras.training import grid
from dh_keras.training.grid import GridRun


def row(variant, seed, ap):
    aps = dict.fromkeys(("AP50", "AP75", "APs", "APm", "APl"), 0.5)
    return {"variant": variant, "seed": seed, "AP": ap, **aps, "parameters": 1234, "seconds_per_step": 0.25, "steps": 7}


ROWS = [
    *(row("double_head", seed, ap) for seed, ap in enumerate((0.3, 0.4, 0.5))),
    *(row("single_fc", seed, ap) for seed, ap in enumerate((0.4, 0.6, 0.8))),
    row("single_conv", 1, 0.25),
    row("double_fc", 5, 0.25),
]


def test_a_difference_is_of_runs_with_the_same_seed_and_its_interval_is_students():
    mean, low, high = paired_difference(ROWS, "double_head", "single_fc", "AP")
    # Differences 0.1, 0.2, 0.3: deviation 0.1; the 97.5% quantile with 2 degrees of freedom is 4.30265.
    half = 4.30265 * 0.1 / math.sqrt(3)
    assert (mean, low, high) == pytest.approx((0.2, 0.2 - half, 0.2 + half), abs=1e-6)
    assert paired_difference(ROWS, "double_head", "single_conv", "AP") == (pytest.approx(-0.15), -math.inf, math.inf)
    assert paired_difference(ROWS, "double_head", "double_fc", "AP") is None
    assert paired_difference(ROWS, "double_head", "single_fc", "AP50") == (0.0, 0.0, 0.0)


def test_the_tables_give_mean_deviation_and_interval():
    lines = format_table(ROWS).splitlines()
    assert lines[2].startswith("| double_head | 3 | 0.400 ± 0.100 | 0.500 ± 0.000 |")
    assert lines[2].endswith("| 1,234 | 0.250 |")
    assert lines[4].startswith("| single_conv | 1 | 0.250 | 0.500 |")
    assert {line.count("|") for line in lines} == {11}
    text = format_differences(ROWS, "double_head")
    assert "| single_fc | +0.200 (-0.048 to +0.448) | +0.000 (+0.000 to +0.000) |" in text
    assert "| single_conv | -0.150 (one seed) |" in text
    assert "| double_fc | - | - | - |" in text
    assert "| double_head |" not in text


def test_a_run_is_measured_by_its_last_evaluation_its_weights_and_its_speed(tiny_run, tmp_path, make_tiny_detector):
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    table = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    changes = ({"AP": "0.9", "images_per_second": "8"}, {"AP": "0.25", "images_per_second": "16"}, {"AP": ""})
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows({**table[0], "epoch": "1", **change} for change in changes)
    config = open_run(folder).config
    found = measure_run(GridRun("double_head", 0, config, folder / "config.yaml", folder))
    assert found["AP"] == 0.25
    assert found["parameters"] == make_tiny_detector().count_params()
    speeds = sorted([8.0, 16.0, float(table[0]["images_per_second"])])
    assert found["seconds_per_step"] == pytest.approx(config.data.batch_size / speeds[1])
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerow({**table[0], "AP": ""})
    with pytest.raises(DataError, match="no validation images"):
        measure_run(GridRun("double_head", 0, config, folder / "config.yaml", folder))


def test_the_command_trains_what_is_missing_and_writes_table_figure_and_all_runs(
    tiny_run, tmp_path, monkeypatch, capsys, tiny_shapes
):
    trained, output = [], tmp_path / "comparison"

    def train_one(run, *, strategy):
        trained.append((run.variant, run.seed, run.config.model.variant, run.config.train.seed, strategy))
        shutil.copytree(tiny_run, run.folder)

    monkeypatch.setattr(grid, "train_one", train_one)
    command = ["compare", "--output", str(output), "--variants", "single_fc", "double_head", "--seeds"]
    main([*command, "1", "train.seed=4"])
    assert trained == [("single_fc", 4, "single_fc", 4, "none"), ("double_head", 4, "double_head", 4, "none")]
    main([*command, "2", "train.seed=4"])
    assert [run[:2] for run in trained[2:]] == [("single_fc", 5), ("double_head", 5)]
    assert "=== training 3 of 4: single_fc, seed 5 ===" in capsys.readouterr().out
    with (output / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(one["variant"], one["seed"]) for one in rows] == [
        ("single_fc", "4"),
        ("double_head", "4"),
        ("single_fc", "5"),
        ("double_head", "5"),
    ]
    assert "| single_fc | +0.000 (+0.000 to +0.000) |" in (output / "comparison.md").read_text()
    with Image.open(output / "comparison.png") as picture:
        assert picture.width > 1000
    before = (output / "comparison.csv").read_text()
    main([*command, "2", "train.seed=4"])
    assert len(trained) == 4
    assert (output / "comparison.csv").read_text() == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--variants", "single"], "--variants: expected some of single_fc, .*, each once, got single"),
        (["--variants", "single_fc", "single_fc"], "each once, got one twice"),
        (["--seeds", "0"], "--seeds: expected a number from 1 up, got 0"),
        (["--config", "nothing"], "config nothing: no such file"),
        (["--train-annotations", "a.json", "--train-images", "b"], "needs validation images; give --val-annotations"),
    ],
)
def test_what_cannot_be_compared_is_one_line_and_leaves_no_folder(words, expected, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--output", str(tmp_path / "new"), *words])
    assert stop.value.code == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert re.search(expected, message)
    assert not (tmp_path / "new").exists()


def test_a_folder_of_another_comparison_or_of_something_else_is_left_alone(tmp_path, tiny_run):
    given = {"config_path": DEFAULT_CONFIG, "values": {}, "variants": ["single_fc"], "seeds": 1}
    grid.make_grid(tmp_path / "one", overrides=[], **given)
    before = {path: path.read_bytes() for path in (tmp_path / "one").rglob("*") if path.is_file()}
    with pytest.raises(
        ValueError, match=r"single_fc-seed0\.yaml: is of another comparison: train\.lr is .* there and 3"
    ):
        grid.make_grid(tmp_path / "one", overrides=["train.lr=3"], **given)
    assert {path: path.read_bytes() for path in (tmp_path / "one").rglob("*") if path.is_file()} == before
    with pytest.raises(DataError, match="exists already and is not overwritten"):
        grid.make_grid(tiny_run, overrides=[], **given)
