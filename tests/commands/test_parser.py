"""Words on the command line are sorted into arguments, options and overrides wherever they stand."""

from pathlib import Path

import pytest

import dh_keras
from dh_keras.commands.parser import make_parser, run_script


@pytest.fixture
def parser():
    parser = make_parser("Test.", positionals=("run",))
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
    args = parser.parse_words(line.split())
    assert args.run == "runs/a"
    assert args.verify == [Path("a.jpg"), Path("b.jpg")]
    assert args.output == Path("out")
    assert sorted(args.overrides) == ["model.nms_iou=0.4", "train.lr=0.1"]


def test_a_file_whose_name_looks_like_an_override_is_a_file(parser, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a=b.jpg").touch()
    args = parser.parse_words(["runs/a", "--verify", "a=b.jpg", "c=d.jpg"])
    assert args.verify == [Path("a=b.jpg")]
    assert args.overrides == ["c=d.jpg"]


def test_some_arguments_take_several_words():
    args = make_parser("Test.", positionals=("models",)).parse_words(["runs/a", "train.lr=0.1", "runs/b"])
    assert args.models == ["runs/a", "runs/b"]
    assert args.overrides == ["train.lr=0.1"]


@pytest.mark.parametrize(("line", "message"), [("--output out", "run is missing"), ("a b", "unexpected argument 'b'")])
def test_too_few_or_too_many_words_are_refused(parser, capsys, line, message):
    with pytest.raises(SystemExit) as stopped:
        parser.parse_words(line.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_another_backend_of_keras_is_refused_in_one_line(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(ImportError, match=r"KERAS_BACKEND: dh_keras needs the backend tensorflow, got 'jax'"):
        dh_keras.Detector  # noqa: B018
    with pytest.raises(SystemExit, match=r"^error: KERAS_BACKEND: "):
        run_script(lambda args: pytest.fail("was called"), make_parser("Test."), [])
