"""What an installation holds: every file of the package, the console command, and what messages say about extras."""

import importlib
import re
from importlib import metadata
from pathlib import Path

import pytest
import setuptools  # noqa: F401  distutils is a part of it since Python 3.12

from dh_keras.errors import pip_install

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def distribution(monkeypatch):
    """What setup.py declares."""
    from distutils.core import run_setup

    monkeypatch.chdir(ROOT)
    return run_setup("setup.py", stop_after="init")


def test_the_wheel_has_every_file_of_the_package(distribution):
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    packed = {Path(name) for name in build.get_source_files()}
    packed |= {Path(folder, name) for _, folder, _, names in build.data_files for name in names}
    files = {path.relative_to(ROOT) for path in (ROOT / "dh_keras").rglob("*") if path.is_file()}
    files = {path for path in files if "__pycache__" not in path.parts}
    assert Path("dh_keras/reports/templates/data_report.html") in files
    assert files - packed == set()


def test_the_console_command_is_a_function_of_the_package(distribution):
    (line,) = distribution.entry_points["console_scripts"]
    name, module, function = re.fullmatch(r"([\w-]+) = ([\w.]+):(\w+)", line).groups()
    assert name == "dh-keras"
    assert callable(getattr(importlib.import_module(module), function))


def test_messages_name_the_libraries_of_an_extra_as_setup_does(distribution, monkeypatch):
    lines = [f'{one}; extra == "{name}"' for name, wanted in distribution.extras_require.items() for one in wanted]
    monkeypatch.setattr(metadata, "requires", lambda name: ["numpy<2.5,>=2.0", *lines])
    assert pip_install("demo") == 'pip install "gradio<7,>=6"'
    assert pip_install("docs") == 'pip install "mkdocs-material<10,>=9.6" "mkdocstrings[python]<2,>=0.27"'
    sources = "".join(path.read_text() for path in (ROOT / "dh_keras").rglob("*.py"))
    named = set(re.findall(r"pip_install\(['\"](\w+)", sources))
    assert named == {"hub", "serving", "demo", "formats", "supervision", "augment", "onnx"}
    assert named <= set(distribution.extras_require)


def test_a_checkout_that_is_not_installed_names_its_extra(monkeypatch):
    def requires(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    assert pip_install("demo") == 'pip install ".[demo]"'
