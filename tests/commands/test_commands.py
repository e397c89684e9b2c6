"""The commands: one list, two ways to call each, and one line for everything that is wrong."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dh_keras
from dh_keras.commands.main import COMMANDS, main, module_name, summary
from dh_keras.commands.quick_start import NOT_NEEDED

ROOT = Path(__file__).resolve().parents[2]
HELP = """
import runpy, sys
from dh_keras.commands.main import main
sys.argv[1:] = ["--help"]
for command, door in zip(COMMANDS, DOORS):
    for call in (lambda: main([command, "--help"]), lambda: runpy.run_path(door, run_name="__main__")):
        print("call:", command)
        try:
            call()
        except SystemExit as stop:
            print("status:", stop.code)
assert not {"tensorflow", "keras", "cv2", "matplotlib"} & set(sys.modules)
"""


def run_python(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_every_command_says_the_same_by_both_doors_and_its_help_needs_no_tensorflow():
    doors = [f"scripts/{module_name(command)}.py" for command in COMMANDS]
    done = run_python("-c", f"COMMANDS, DOORS = {COMMANDS!r}, {doors!r}\n{HELP}")
    assert done.returncode == 0, done.stderr
    shown = done.stdout.split("call: ")[1:]
    assert len(shown) == 2 * len(COMMANDS)
    for command, by_console, by_script in zip(COMMANDS, shown[::2], shown[1::2], strict=True):
        assert by_console == by_script
        assert by_console.startswith(f"{command}\nusage: dh-keras {command} ")
        assert summary(command) in by_console
        assert by_console.endswith("\nstatus: 0\n")


def test_every_module_and_every_script_is_a_command_and_says_so():
    shared = {"__init__", "main", "parser", "quick_start"}
    modules = {path.stem for path in (ROOT / "dh_keras" / "commands").glob("*.py")} - shared
    assert modules == {module_name(command) for command in COMMANDS}
    assert {path.stem for path in (ROOT / "scripts").glob("*")} - {"__pycache__"} == modules
    for command in COMMANDS:
        door = (ROOT / "scripts" / f"{module_name(command)}.py").read_text()
        assert door == (
            f'"""{summary(command)}"""\n\nfrom dh_keras.commands.{module_name(command)} import main\n\n'
            'if __name__ == "__main__":\n    main()\n'
        )


def test_the_list_of_commands_fits_on_a_screen_and_needs_nothing_that_is_slow(capsys):
    main(["--help"])
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert len(lines) <= 23
    assert max(map(len, lines)) <= 80
    assert re.findall(r"^  ([a-z-]+) +[A-Z].*\.$", shown, re.MULTILINE) == list(COMMANDS)
    main([])
    main(["-h"])
    assert capsys.readouterr().out == 2 * shown
    code = "import sys; from dh_keras.commands.main import main; main(['--help']); print(*sys.modules)"
    loaded = run_python("-c", code).stdout.splitlines()[-1].split()
    assert "dh_keras.commands.main" in loaded
    assert not {"tensorflow", "keras", "numpy", "omegaconf", "argparse"} & set(loaded)


def test_keras_loads_nothing_for_others_when_a_command_starts_and_what_it_left_out_can_be_used_afterwards():
    code = """if True:
        import argparse, sys
        from dh_keras.commands.parser import CommandParser, run_command
        def run(args):
            import keras, tensorflow
            print(*sys.modules)
            import cv2, matplotlib.pyplot, pandas, scipy.sparse
            print(pandas.DataFrame({"a": [1, 2]}).a.sum(), matplotlib.pyplot.figure().number)
            print(scipy.sparse.eye(3).nnz, cv2.countNonZero(scipy.sparse.eye(3).toarray()))
        run_command(CommandParser("predict", "Words.", words={"sources": ("", "")}), run, ["a"])
    """
    shown = run_python("-c", code)
    loaded, *used = shown.stdout.splitlines()[-3:]
    assert {"keras", "tensorflow"} <= set(loaded.split())
    assert not set(NOT_NEEDED) & set(loaded.split())
    assert used == ["3 1", "3 3"]


def test_the_version_is_that_of_the_package(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"dh_keras {dh_keras.__version__}\n"
    assert f'version="{dh_keras.__version__}"' in (ROOT / "setup.py").read_text()


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("trian", "did you mean train?"),
        ("inspect_data", "did you mean inspect-data?"),
        ("predict.py", "did you mean predict?"),
        ("runs/x", "dh-keras --help lists them"),
    ],
)
def test_an_unknown_command_is_one_line_that_suggests_the_nearest(word, advice, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([word, "--config", "x"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: there is no command {word!r}; {advice}\n"


def test_python_m_is_the_same_as_the_console_command():
    done = run_python("-m", "dh_keras", "predict", "nothing", "--output")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        "dh-keras predict: error: argument --output: expected one argument",
    )


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (("train", "train.lr=x"), 1, r"error: override 'train.lr=x': key train.lr"),
        (("train", "--config", "nothing.yaml"), 1, r"error: config nothing.yaml: no such file"),
        (("train", "--resume"), 1, r"error: --resume: needs --output RUN"),
        (("train", "--output", "OUT", "--train-annotations", "no.json", "--train-images", "."), 1, r"error: .*no.json"),
        (("train", "oops"), 2, r"unexpected argument 'oops'"),
        (
            ("evaluate", "nothing", "--annotations", "a.json", "--images", "."),
            1,
            r"error: nothing: no such file or folder",
        ),
        (("evaluate", ".", "--annotations", "a.json", "--images", "."), 1, r"error: a\.json: no such file or folder"),
        (("evaluate", ".", "--images", "."), 1, r"error: --annotations and --images: expected both"),
        (("evaluate", "."), 1, r"error: \.: is no run folder, which knows its data; give --annotations and --images"),
        (("analyze", "nothing"), 1, r"error: nothing: no such file or folder"),
        (("demo", "nothing"), 1, r"error: nothing: no such file or folder"),
        (("predict", ".", ".", "--resume"), 1, r"error: --resume: needs --output"),
        (("predict", "nothing", "nothing.jpg", "--output", "OUT"), 1, r"error: nothing.jpg: no such file or folder"),
        (("predict", "nothing", "--output", "OUT"), 1, r"error: there is nothing to detect in; give images"),
        (("export", "nothing", "--output", "OUT/1"), 1, r"error: nothing: no such file or folder"),
        (("merge-predictions", "a", "--output", "OUT", "train.lr=1"), 2, r"takes no overrides, got 'train.lr=1'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_answered_with_one_line(arguments, status, expected, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([argument.replace("OUT", str(tmp_path / "out")) for argument in arguments])
    assert stopped.value.code == status
    said = capsys.readouterr().err.strip().splitlines()
    assert re.search(expected, said[-1])
    assert len(said) == 1 or status == 2
    assert not (tmp_path / "out").exists()


def test_the_commands_work_together(tiny_run, tiny_shapes, tmp_path, capsys, monkeypatch, quick_graphs):
    photograph = sorted(Path(tiny_shapes.val_images).iterdir())[0]
    exported = str(tmp_path / "m" / "1")
    main(["export", str(tiny_run), "--output", exported, "--verify", str(photograph)])
    shown = capsys.readouterr().out
    assert "target: cpu, as this machine has" in shown
    assert "verified: 10 detections in 1 image(s)" in shown
    assert f"next: dh-keras predict {exported} PHOTO.jpg --output predictions" in shown
    data = ["--annotations", str(tiny_shapes.val_annotations), "--images", str(tiny_shapes.val_images)]
    main(["evaluate", exported, *data, "--output", str(tmp_path / "metrics.json")])
    assert set(json.loads((tmp_path / "metrics.json").read_text())) == {
        *("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", "per_class", "images")
    }
    main(["predict", str(tiny_run), str(photograph), "--output", str(tmp_path / "p"), "--score", "0.9999"])
    assert "nothing above 1.00; the best is" in capsys.readouterr().out
    assert (tmp_path / "p" / f"{photograph.stem}.jpg").is_file()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "predictions").mkdir()
    main(["predict", str(tiny_run), str(photograph), "--no-pictures"])
    assert (tmp_path / "predictions-2" / "predictions.json").is_file()
    main(["evaluate", str(tiny_run), "--output", str(tmp_path / "own.json")])
    assert json.loads((tmp_path / "own.json").read_text())["images"] == 6
