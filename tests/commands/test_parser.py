"""Words on the command line are sorted into arguments, options and overrides wherever they stand."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dh_keras
from dh_keras.commands.parser import CommandParser, require_paths, run_command
from dh_keras.config.load import load_config
from dh_keras.data.formats.coco import read_categories
from dh_keras.errors import DataError
from dh_keras.inference.photographs import read_image_file
from dh_keras.inference.prediction.sources import list_sources
from dh_keras.run.classes import read_classes


@pytest.fixture
def parser():
    parser = CommandParser("test", "Test.", words={"run": ("RUN", "a run")})
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
    Path("data.x=1").touch()
    args = parser.parse(["runs/a", "--verify", "a=b.jpg", "data.x=1", "data.y=1"])
    assert args.verify == [Path("a=b.jpg"), Path("data.x=1")]
    assert args.overrides == ["data.y=1"]


def test_only_keys_of_the_config_are_overrides(parser, capsys):
    args = parser.parse(["runs/a", "--verify", "date=2024-01-05/*.png", "train.lr=0.1", "lr=0.1"])
    assert args.verify == [Path("date=2024-01-05/*.png"), Path("lr=0.1")]
    assert args.overrides == ["train.lr=0.1"]
    with pytest.raises(SystemExit):
        parser.parse(["runs/a", "lr=0.1"])
    assert "unexpected argument 'lr=0.1'; config changes look like train.lr=0.02" in capsys.readouterr().err


def test_some_arguments_take_several_words():
    parser = CommandParser("test", "Test.", words={"model": ("MODEL", "a model"), "sources": ("[SOURCE...]", "files")})
    args = parser.parse(["runs/a", "a.jpg", "train.lr=0.1", "b.jpg"])
    assert (args.model, args.sources) == ("runs/a", ["a.jpg", "b.jpg"])
    assert args.overrides == ["train.lr=0.1"]
    assert parser.parse(["runs/a"]).sources == []


@pytest.mark.parametrize("shown", ["MODEL...", "MODEL [MODEL2]"])
def test_what_takes_several_words_may_need_one(shown, capsys):
    parser = CommandParser("test", "Test.", words={"models": (shown, "models")})
    assert parser.parse(["runs/a", "runs/b"]).models == ["runs/a", "runs/b"]
    with pytest.raises(SystemExit):
        parser.parse([])
    assert f"usage: dh-keras test {shown} [options] [key=value ...]\n" in (said := capsys.readouterr().err)
    assert said.endswith("dh-keras test: error: models is missing\n")


def test_a_command_without_a_config_takes_no_overrides(capsys):
    parser = CommandParser("test", "Test.", words={"run": ("RUN", "a run")}, overrides=False)
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


def test_a_keras_json_with_another_backend_is_overruled(tmp_path):
    (tmp_path / "keras.json").write_text('{"backend": "jax", "image_data_format": "channels_first"}')
    code = "import dh_keras; dh_keras.load_config; import keras; print(keras.config.backend())"
    environment = {**os.environ, "KERAS_HOME": str(tmp_path)}
    environment.pop("KERAS_BACKEND", None)
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert run.stdout == "tensorflow\n", run.stderr


def test_keras_that_was_imported_with_another_backend_is_refused(monkeypatch):
    monkeypatch.setattr("keras.config.backend", lambda: "jax")
    with pytest.raises(ImportError, match=r"with the backend 'jax', .* set KERAS_BACKEND=tensorflow before the first"):
        dh_keras.Detector  # noqa: B018


@pytest.mark.parametrize(
    ("said", "ending", "status", "shown", "complaint"),
    [
        ("圆盘 \\ud800", "", 0, r"\u5706\u76d8 \ud800", ""),
        ("line\\n", " * 100_000 + 'end'; open('reached', 'w')", 141, "line\n", ""),
    ],
)
def test_a_terminal_that_lacks_the_letters_or_is_closed_is_no_traceback(
    tmp_path, said, ending, status, shown, complaint
):
    code = f"""
from dh_keras.commands.parser import CommandParser, run_command
def run(args):
    text = "{said}"{ending}
    print(text)
run_command(CommandParser("test", "Test."), run, [])
"""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline().decode().rstrip("\n") == shown.rstrip("\n")
        process.stdout.close()
        assert process.stderr.read().decode() == complaint
        assert process.wait() == status


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (lambda path: load_config(path / "config.yaml"), "config .*config.yaml: cannot be read"),
        (lambda path: read_categories(path / "truth.json"), "annotations .*truth.json: cannot be read"),
        (lambda path: read_classes(path / "classes.json"), ".*classes.json: cannot be read"),
        (lambda path: read_image_file(path / "photo.jpg"), ".*photo.jpg: cannot be read"),
        (lambda path: list_sources([path]), ".*: cannot be read"),
        (lambda path: (path / "run").read_bytes(), ".*run"),
    ],
)
def test_what_a_user_may_not_read_is_named_in_one_line(tmp_path, monkeypatch, capsys, read, name):
    for file in ("config.yaml", "truth.json", "classes.json", "photo.jpg"):
        (tmp_path / file).touch()

    def refuse(path, *args, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("io.open", refuse)  # of pathlib
    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("os.listdir", refuse)
    with pytest.raises(SystemExit, match=r"^1$"):
        run_command(CommandParser("test", "Test."), lambda args: read(tmp_path), [])
    assert re.fullmatch(f"error: {name}: Permission denied(; use what this user may)?\n", capsys.readouterr().err)


def test_a_command_hardly_looks_for_garbage_and_not_at_all_when_it_ends():
    code = """
import atexit, gc
atexit.register(lambda: print(gc.get_threshold()[0], gc.get_freeze_count() > 1_000))
from dh_keras.commands.parser import CommandParser, run_command
run_command(CommandParser("test", "Test."), lambda args: None, [])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout == "50000 True\n", run.stderr


def test_a_name_of_published_weights_is_there_for_the_commands_that_take_a_model():
    require_paths("mmdetection_r50", None)
    with pytest.raises(DataError, match="mmdetection_r5: no such file or folder"):
        require_paths("mmdetection_r5")


def test_what_needs_the_model_garden_says_so_where_it_is_not_installed(capsys):
    def use(args):
        raise ModuleNotFoundError("No module named 'official'")

    with pytest.raises(SystemExit, match=r"^1$"):
        run_command(CommandParser("test", "Test."), use, [])
    assert capsys.readouterr().err.startswith('error: this needs the Model Garden: pip install "tf-models-official')
    with pytest.raises(ZeroDivisionError):
        run_command(CommandParser("test", "Test."), lambda args: 1 / 0, [])
