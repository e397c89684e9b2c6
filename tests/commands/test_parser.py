"""Words on the command line are sorted into arguments, options and overrides wherever they stand."""

import subprocess
import sys
from pathlib import Path

import pytest

import dh_keras
from dh_keras.commands.parser import CommandParser, run_command


@pytest.fixture
def parser():
    parser = CommandParser("test", "Test.", words={"run": "RUN"})
    parser.add_argument("--verify", nargs="+", type=Path, default=[])
    parser.add_argument("--output", type=Path)
    return parser


@pytest.mark.parametrize(
    "line",
    [
        "runs/a --output out --verify a.jpg b.jpg train.lr=0.1 model.nms_iou=0.4",
        "train.lr=0.1 runs/a model.nms_iou=0.4 --verify a.jpg b.jpg --output out",
        "--verify a.jpg b.jpg train.lr=0.1 --output out runs/a model.nms_iou=0.4",
    ],
)
def test_overrides_may_stand_anywhere_even_behind_an_option_with_several_values(parser, line):
    args = parser.parse(line.split())
    assert args.run == "runs/a"
    assert args.verify == [Path("a.jpg"), Path("b.jpg")]
    assert args.output == Path("out")
    assert sorted(args.overrides) == ["model.nms_iou=0.4", "train.lr=0.1"]


def test_a_file_whose_name_looks_like_an_override_is_a_file(parser, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a=b.jpg").touch()
    args = parser.parse(["runs/a", "--verify", "a=b.jpg", "c=d.jpg"])
    assert args.verify == [Path("a=b.jpg")]
    assert args.overrides == ["c=d.jpg"]


def test_some_arguments_take_several_words():
    parser = CommandParser("test", "Test.", words={"model": "MODEL", "sources": "[SOURCE...]"})
    args = parser.parse(["runs/a", "a.jpg", "train.lr=0.1", "b.jpg"])
    assert (args.model, args.sources) == ("runs/a", ["a.jpg", "b.jpg"])
    assert args.overrides == ["train.lr=0.1"]
    assert parser.parse(["runs/a"]).sources == []


@pytest.mark.parametrize("shown", ["MODEL...", "MODEL [MODEL2]"])
def test_what_takes_several_words_may_need_one(shown, capsys):
    parser = CommandParser("test", "Test.", words={"models": shown})
    assert parser.parse(["runs/a", "runs/b"]).models == ["runs/a", "runs/b"]
    with pytest.raises(SystemExit):
        parser.parse([])
    assert f"usage: dh-keras test {shown} [options] [key=value ...]\n" in (said := capsys.readouterr().err)
    assert said.endswith("dh-keras test: error: models is missing\n")


def test_a_command_without_a_config_takes_no_overrides(capsys):
    parser = CommandParser("test", "Test.", words={"run": "RUN"}, overrides=False)
    assert parser.parse(["runs/a"]).run == "runs/a"
    with pytest.raises(SystemExit) as stopped:
        parser.parse(["runs/a", "train.lr=0.1"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "usage: dh-keras test RUN [options]\n" in said
    assert "takes no overrides, got 'train.lr=0.1'" in said
    assert "key=value" not in parser.format_help()


def test_the_help_shows_defaults_that_there_are(parser):
    parser.add_argument("--score", type=float, default=0.5, help="lowest score")
    parser.add_argument("--limit", type=int, help="of images")
    shown = parser.format_help()
    assert "lowest score (default: 0.5)" in shown
    assert shown.count("default") == 1


@pytest.mark.parametrize(("line", "message"), [("--output out", "run is missing"), ("a b", "unexpected argument 'b'")])
def test_too_few_or_too_many_words_are_refused(parser, capsys, line, message):
    with pytest.raises(SystemExit) as stopped:
        parser.parse(line.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_another_backend_of_keras_is_refused_in_one_line(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(ImportError, match=r"KERAS_BACKEND: dh_keras needs the backend tensorflow, got 'jax'"):
        dh_keras.Detector  # noqa: B018
    with pytest.raises(SystemExit, match=r"^error: KERAS_BACKEND: "):
        run_command(CommandParser("test", "Test."), lambda args: pytest.fail("was called"), [])


def test_a_command_hardly_looks_for_garbage_and_not_at_all_when_it_ends():
    code = """
import atexit, gc
atexit.register(lambda: print(gc.get_threshold()[0], gc.get_freeze_count() > 1_000))
from dh_keras.commands.parser import CommandParser, run_command
run_command(CommandParser("test", "Test."), lambda args: None, [])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout == "50000 True\n", run.stderr
