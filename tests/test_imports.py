"""Imports go one way, and what needs no TensorFlow does not import it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dh_keras"
STAGES = ("proposals", "targets", "losses", "detections")
FREE_OF_TENSORFLOW = (
    "config",
    "constants",
    "errors",
    "variants",
    "evaluation",
    "run_folder",
    "ops.cell_anchors",
    "data.canvases",
    "data.coco",
    "data.coco_rows",
    "data.dataset",
    "data.shapes",
    "prediction.sources",
    "prediction.folder",
)


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


def files_of(part):
    path = PACKAGE / part
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def assert_imports_only(part, *allowed):
    """No file of a part imports anything of the package but the allowed parts and itself."""
    files = files_of(part)
    assert files
    for path in files:
        for name in imported_names(path):
            if name.split(".")[0] == "dh_keras":
                inside = name.removeprefix("dh_keras.")
                assert inside.split(".")[0] in {part, *allowed}, f"{path.name} imports {name}"


def test_there_are_files_to_look_at():
    assert len(files_of("ops")) > 5
    assert "dh_keras.constants.MATCH_IGNORE" in imported_names(PACKAGE / "ops" / "matching.py")
    assert "dh_keras.ops.boxes.box_area" in imported_names(PACKAGE / "ops" / "roi_align.py")


def test_constants_and_errors_import_nothing_of_the_package():
    assert_imports_only("constants")
    assert_imports_only("errors")
    assert_imports_only("files", "errors")


def test_ops_import_only_constants():
    assert_imports_only("ops", "constants")


def test_layers_import_only_ops_and_constants():
    assert_imports_only("layers", "ops", "constants")


@pytest.mark.parametrize("stage", STAGES)
def test_stages_import_only_ops_and_constants(stage):
    assert_imports_only(stage, "ops", "constants")


def test_the_model_imports_stages_and_settings_but_builds_nothing():
    assert_imports_only("model", "ops", "constants", "config", "variants", *STAGES)


def test_data_never_imports_model_or_training():
    assert_imports_only("data", "config", "constants", "errors")


def test_nobody_below_training_imports_training():
    for part in (
        "builder",
        "model",
        "evaluation",
        "export",
        "detector",
        "visualize",
        "files",
        "flops",
        "data",
        "layers",
        "ops",
        *STAGES,
    ):
        for path in files_of(part):
            assert not [name for name in imported_names(path) if name.startswith("dh_keras.training")], path


def test_nothing_imports_the_benchmark_and_it_trains_with_the_recipes_optimizer():
    assert_imports_only(
        "benchmark",
        "ops",
        "training",
        "inference",
        "builder",
        "config",
        "constants",
        "detections",
        "errors",
        "flops",
        "layers",
        "model",
        "proposals",
        "variants",
    )
    for path in set(PACKAGE.rglob("*.py")) - set(files_of("benchmark")):
        assert not [name for name in imported_names(path) if name.startswith("dh_keras.benchmark")], path


def test_only_the_serving_client_imports_the_prediction_and_nothing_the_demo():
    assert_imports_only(
        "prediction", "constants", "data", "detector", "errors", "evaluation", "run_folder", "visualize"
    )
    assert_imports_only("demo", "data", "detector", "errors", "export", "visualize")
    for path in set(PACKAGE.rglob("*.py")) - set(files_of("prediction")) - set(files_of("demo")):
        names = imported_names(path)
        assert not [name for name in names if name.startswith("dh_keras.demo")], path
        if path.stem != "serving_client":
            assert not [name for name in names if name.startswith("dh_keras.prediction")], path


def test_nothing_imports_the_analysis_and_it_trains_nothing():
    for path in set(PACKAGE.rglob("*.py")) - set(files_of("analysis")):
        assert not [name for name in imported_names(path) if name.startswith("dh_keras.analysis")], path
    for path in files_of("analysis"):
        above = ("dh_keras.training", "dh_keras.benchmark")
        assert not [name for name in imported_names(path) if name.startswith(above)], path


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
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
