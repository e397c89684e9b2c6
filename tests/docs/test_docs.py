"""What the documentation says is so: commands parse, keys and files exist, messages are real, figures are current."""

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import figures
import pytest
import reference
import yaml
from test_imports import ROOMS

import dh_keras
from dh_keras.commands.train import given_overrides
from dh_keras.config.load import load_config
from dh_keras.config.options import flatten
from dh_keras.config.schema import Config
from dh_keras.pretrained.published import PUBLISHED

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
KEY = re.compile(r"(?<![\w./-])((?:model|data|train)(?:\.[a-z][a-z_0-9]*)+)(?![\w./(])")
PARSERS = cache(reference.command_parsers)
FILE_ENDINGS = (".json", ".md", ".pth", ".py")
# Words that belong to no reader, and promises that nobody measured.
FORBIDDEN = re.compile(
    r"\b(todo|fixme|tbd|lorem|coming soon|blazing|state[- ]of[- ]the[- ]art|seamless\w*|issue #?\d+|session)\b"
    r"|/tmp/|/work/",
    re.IGNORECASE,
)


def commands(text):
    """Shell commands of a page's bash blocks, continued lines joined, comments dropped."""
    for language, block in FENCE.findall(text):
        if language == "bash":
            for line in block.replace("\\\n", " ").splitlines():
                yield from (part.strip() for part in line.split("&&"))


def package_commands():
    for page in PAGES:
        for command in commands(page.read_text()):
            if "dh-keras" in command or "scripts/" in command:
                yield pytest.param(command, id=f"{page.stem}: {command[:60]}")


def anchors(page):
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


LEAVES = tuple(flatten(Config()))


def is_config_path(key):
    return any(leaf == key or leaf.startswith(f"{key}.") for leaf in LEAVES) or ".hub_arguments." in key


def test_there_is_something_to_check():
    assert len(list(package_commands())) > 35
    assert len(PAGES) > 12
    assert len(LEAVES) > 80
    assert not is_config_path("model.rpn.nms_treshold")


@pytest.mark.parametrize("command", package_commands())
def test_commands_parse(command):
    words = shlex.split(command, comments=True)
    if words[0] == "python":  # scripts/train.py is dh-keras train
        words = ["dh-keras", Path(words[1]).stem.replace("_", "-"), *words[2:]]
    program, name, *rest = words
    assert program == "dh-keras"
    args = PARSERS()[name].parse(rest)
    for override in args.overrides:
        assert is_config_path(override.partition("=")[0]), override
    if hasattr(args, "config") and not str(args.config).startswith("runs/"):
        load_config(args.config, given_overrides(args) if "epochs" in args else args.overrides)


@EVERY_PAGE
def test_links_lead_somewhere(page):
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


@EVERY_PAGE
def test_config_keys_exist(page):
    for key in (key for key in KEY.findall(page.read_text()) if not key.endswith(FILE_ENDINGS)):
        assert is_config_path(key), f"{page.name}: {key}"


@EVERY_PAGE
def test_named_files_exist(page):
    for name in re.findall(r"`((?:configs|scripts|docs|deploy|tests|dh_keras)/[\w/.]+\.\w+)`", page.read_text()):
        assert (ROOT / name).is_file(), f"{page.name}: {name}"


def test_the_house_is_drawn_as_it_is():
    page = (ROOT / "docs" / "contributing.md").read_text()
    assert tuple(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == ROOMS
    paths = set(re.findall(r"`([\w.]+/[\w./]*)`", page))
    assert len(paths) > 35
    homes = (ROOT, ROOT / "dh_keras")
    assert [path for path in sorted(paths) if not any((home / path).exists() for home in homes)] == []
    named = re.findall(r"`(\w+)`\s(?:of|in)\s`(dh_keras/[\w./]+\.py)`", page)
    assert len(named) > 9
    for name, path in named:
        defined = rf"^ *(?:def|class) {name}\b|^{name} = "
        assert re.search(defined, (ROOT / path).read_text(), re.MULTILINE), f"{path}: {name}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "docs" / "quickstart.ipynb"], ids=lambda page: page.stem)
def test_no_word_stands_there_that_should_not(page):
    found = FORBIDDEN.search(page.read_text())
    assert found is None, f"{page.name}: {found}"


def test_python_examples_are_python_and_name_what_exists():
    for page in PAGES:
        for language, block in FENCE.findall(page.read_text()):
            if language == "python":
                for node in ast.walk(ast.parse(block)):
                    if isinstance(node, ast.ImportFrom) and node.module == "dh_keras":
                        assert {alias.name for alias in node.names} <= set(dh_keras.__all__), page.name


def test_every_key_is_in_the_reference_with_its_description():
    rows = {key: row for rows in reference.config_sections().values() for key, *row in rows}
    assert sorted(rows) == sorted(LEAVES)
    assert all(len(text) > 5 for *_, text in rows.values())
    assert rows["model.roi.conv_scale"] == ["1.3", "a number above 0 and at most 100", "the same for a conv-head."]
    assert rows["train.precision"][1] == "one of float32, mixed_bfloat16, mixed_float16"
    assert rows["data.filter_empty"][1] == ""
    assert rows["data.train_annotations"][0] == "null"
    assert rows["model.backbone.frozen_stages"][0] == "1"
    assert rows["model.backbone.stride_in_1x1"][0] == "true"
    assert rows["model.rpn.anchor_ratios"][0] == "[0.5, 1.0, 2.0]"
    text = reference.config_reference()
    assert all(f"| `{key}` |" in text for key in LEAVES)


def test_the_published_weights_are_those_that_are_fetched():
    page = (ROOT / "docs" / "published.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .* \| ([\d.]+) \|$", page, re.MULTILINE)
    assert rows == [(name, one.measured.split()[0]) for name, one in PUBLISHED.items()]


def test_every_option_of_every_command_is_in_the_reference():
    text = reference.command_reference()
    for name, parser in PARSERS().items():
        section = text.partition(f"## {name}\n")[2].partition("\n## ")[0]
        assert section, name
        for action in parser._actions:
            if action.option_strings and action.dest != "help":
                assert f"| `{action.option_strings[-1]}" in section, (name, action.option_strings)
    assert str(ROOT) not in text


def source_strings():
    """Text that the package can print, adjacent literals joined, values left out."""
    for path in (ROOT / "dh_keras").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)


def test_messages_in_troubleshooting_are_those_of_the_code():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    server = {"Op type not registered"}
    seen = re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)
    assert len(seen) > 20
    known = "\n".join(source_strings()).replace("strategy: none, on \0", "strategy: none, on the CPU")
    missing = [message for message in seen if message not in known and message not in server | set(metric_columns())]
    assert not missing


def metric_columns():
    return ("APs", "APm", "APl")


@pytest.mark.parametrize("name", figures.FIGURES)
def test_figures_were_drawn_by_the_code_as_it_is(name):
    drawn = (ROOT / "docs" / "images" / f"{name}.svg").read_text()
    assert f"figures.py {figures.source_hash()}" in drawn, "run python docs/figures.py"


def test_every_page_is_in_the_navigation():
    class Loader(yaml.SafeLoader):
        pass

    nav = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"]
    named = re.findall(r"[\w]+\.md", str(nav))
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert set(named) == pages
    assert len(named) == len(set(named))


def test_the_readme_starts_with_the_two_commands():
    blocks = [block for language, block in FENCE.findall((ROOT / "README.md").read_text()) if language == "bash"]
    assert blocks[0] == "pip install -e . && python scripts/train.py --strategy mirrored\n"
    assert blocks[1] == 'pip install -e ".[test]" && pytest\n'


def test_scripts_are_named_where_they_are_introduced_and_nowhere_else():
    named = {page.name: page.read_text().count("python scripts/") for page in PAGES}
    assert {name: count for name, count in named.items() if count} == {"README.md": 1, "commands.md": 1}
