"""The house: rooms import downwards only, the paper's room nothing else, and what needs no TensorFlow does without."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dh_keras"
# A room imports those that stand before it.
ROOMS = (
    "errors",
    "paths",
    "files",
    "config",
    "modeling",
    "run",
    "pretrained",
    "data",
    "evaluation",
    "inference",
    "training",
    "serving",
    "reports",
    "benchmark",
    "commands",
)
# Tables of the method that settings are checked against; they import nothing.
TABLES = ("modeling.constants", "modeling.variants")
STAGES = ("proposals", "targets", "losses", "detections")
FREE_OF_TENSORFLOW = (
    "benchmark.peer",
    "config.load",
    "modeling.constants",
    "modeling.variants",
    "modeling.ops.cell_anchors",
    "errors",
    "run.run_folder",
    "data.canvases",
    "data.formats.coco",
    "data.formats.coco_entries",
    "data.formats.coco_file",
    "data.formats.foreign.reading",
    "data.dataset",
    "data.shapes",
    "evaluation.coco_metrics",
    "inference.prediction.sources",
    "inference.prediction.folder",
)
FILES = sorted(PACKAGE.rglob("*.py"))


@functools.cache
def imported_names(path):
    """Absolute names of all modules and objects that a file imports, wherever the statement stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imports_of_package(path):
    """What a file imports of the package, without the package's name."""
    return {name.removeprefix("dh_keras.") for name in imported_names(path) if name.startswith("dh_keras.")}


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_out_of_order(room, names):
    """Which of the imported names belong to rooms that stand behind `room`."""
    before = ROOMS[: ROOMS.index(room) + 1]
    names = {name for name in names if name.split(".")[0] in ROOMS}  # dh_keras.__version__ belongs to none
    if room == "config":
        names = {name for name in names if not name.startswith(TABLES)}
    return sorted(name for name in names if name.split(".")[0] not in before)


def files_of(part):
    path = PACKAGE / part
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def test_every_file_is_in_a_room():
    assert {room_of(path) for path in FILES} == {*ROOMS, "__init__", "__main__"}


def test_a_wrong_import_would_be_seen():
    assert rooms_out_of_order("config", {"modeling.constants.PYRAMID_LEVELS", "errors.ConfigError"}) == []
    assert rooms_out_of_order("config", {"modeling.builder.assemble_detector"}) == [
        "modeling.builder.assemble_detector"
    ]
    assert rooms_out_of_order("data", {"training.loop.train", "config.load.load_config"}) == ["training.loop.train"]
    assert "modeling.ops.boxes.box_area" in imports_of_package(PACKAGE / "modeling" / "ops" / "roi_align.py")


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) in ROOMS], ids=str)
def test_a_room_imports_only_rooms_before_it(path):
    assert rooms_out_of_order(room_of(path), imports_of_package(path)) == []


def assert_imports_only(part, *allowed):
    """No file of a part imports anything of the package but the allowed parts and itself."""
    files = files_of(part)
    assert files
    for path in files:
        for name in imports_of_package(path):
            inside = name.startswith(tuple(one.replace("/", ".") for one in (part, *allowed)))
            assert inside, f"{path.relative_to(PACKAGE)} imports {name}"


def test_the_papers_room_imports_only_config_and_errors():
    assert_imports_only("modeling", "config", "errors")


def test_errors_and_the_tables_of_the_method_import_nothing():
    for part in ("errors", "modeling/constants", "modeling/variants"):
        assert_imports_only(part)


def test_inside_the_papers_room_ops_come_before_layers_and_stages():
    assert_imports_only("modeling/ops", "modeling/constants")
    assert_imports_only("modeling/layers", "modeling/ops", "modeling/constants")
    for stage in STAGES:
        assert_imports_only(f"modeling/{stage}", "modeling/ops", "modeling/constants")


MODEL_GARDEN = (
    "benchmark/model_garden.py",
    "data/formats/record_scan.py",
    "data/formats/record_writer.py",
    "data/policies.py",
)


def test_the_model_garden_is_imported_by_few_and_only_when_it_is_used():
    users = [path for path in FILES if any(name.split(".")[0] == "official" for name in imported_names(path))]
    assert [path.relative_to(PACKAGE).as_posix() for path in users] == list(MODEL_GARDEN)
    for path in users:
        tree = ast.parse(path.read_text())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        inside = {id(node) for function in functions for node in ast.walk(function)}
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and id(node) not in inside]
        assert not [node.lineno for node in imports if node.module.startswith("official.")], path


@pytest.mark.parametrize("path", FILES, ids=str)
def test_keras_is_imported_as_itself(path):
    assert not [name for name in imported_names(path) if name.startswith(("tensorflow.keras", "tf_keras"))]
    attributes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    bad = [node.lineno for node in attributes if node.attr == "keras" and getattr(node.value, "id", "") == "tf"]
    assert not bad


def test_configs_data_and_evaluation_are_free_of_tensorflow():
    modules = [f"dh_keras.{name}" for name in FREE_OF_TENSORFLOW]
    code = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
    loaded = {{"tensorflow", "keras"}} & set(sys.modules)
    assert not loaded, f"{{name}} imports {{loaded}}"
print("free")
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "free", run.stderr
