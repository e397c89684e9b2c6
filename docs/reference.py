"""Reference pages from the code itself: config keys, commands, what the inspection of data can find."""

import argparse
import importlib
import inspect
import re
from operator import attrgetter
from pathlib import Path
from typing import Any

from dh_keras.commands.main import COMMANDS, module_name
from dh_keras.commands.parser import CommandParser
from dh_keras.config.options import options
from dh_keras.config.schema import Config
from dh_keras.reports.data_doctor.kinds import KINDS

ROOT = Path(__file__).resolve().parent.parent
ARGUMENT = re.compile(r"^([a-z_0-9, ]+): (.*)$")


# ----------------------------------------------------------------------------------------------- configuration


def described_arguments(described: Any) -> dict[str, str]:
    """The `Args:` of a Google-style docstring, one line of text for each name."""
    lines = inspect.cleandoc(described.__doc__).partition("Args:\n")[2].splitlines()
    found: dict[str, str] = {}
    names: list[str] = []
    for line in lines:
        if not line.startswith("    "):
            break
        match = ARGUMENT.match(line[4:])
        if match:
            names = [name.strip() for name in match[1].split(",")]
            found |= dict.fromkeys(names, match[2])
        else:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def config_sections() -> dict[str, list[tuple[str, str, str, str]]]:
    """A (key, default, what is expected, description) for each value of the config, by the section that it is in."""
    config, sections = Config(), {}
    for key, value, limits in options(config):
        section, _, name = key.rpartition(".")
        text = described_arguments(attrgetter(section)(config))[name]
        sections.setdefault(section, []).append((key, as_yaml(value), limits.expected, text))
    return sections


def as_yaml(value: Any) -> str:
    """A default as it is written in a config file."""
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return repr(round(value, 6))
    if isinstance(value, list):
        return f"[{', '.join(map(as_yaml, value))}]"
    return str(value)


def config_reference() -> str:
    """Markdown: a heading and a table for each section of the config."""
    config, parts = Config(), []
    for section, rows in config_sections().items():
        summary = inspect.cleandoc(attrgetter(section)(config).__doc__).splitlines()[0]
        parts += [f"## {section}", "", summary, "", "| key | default | expected | meaning |", "|---|---|---|---|"]
        parts += [
            f"| `{key}` | `{default}` | {as_cell(limits)} | {as_cell(text)} |" for key, default, limits, text in rows
        ]
        parts.append("")
    return "\n".join(parts)


def as_cell(text: str) -> str:
    """Text that does not break a table."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


# ---------------------------------------------------------------------------------------------------- commands


def command_parsers() -> dict[str, CommandParser]:
    """The parser of every command, by what is typed, in the order of `dh-keras --help`."""
    modules = {name: importlib.import_module(f"dh_keras.commands.{module_name(name)}") for name in COMMANDS}
    return {name: module.make_parser() for name, module in modules.items()}


def command_reference() -> str:
    """Markdown: what each command does, how it is called, and a table of its options."""
    parts = []
    for name, parser in command_parsers().items():
        usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
        parts += [f"## {name}", "", parser.description.strip(), "", "```text", usage, "```", ""]
        rows = [option_row(action) for action in parser._actions if action.option_strings and action.dest != "help"]
        if rows:
            parts += ["| option | default | meaning |", "|---|---|---|", *rows, ""]
    return "\n".join(parts)


def option_row(action: argparse.Action) -> str:
    """A table row for one option."""
    flag = action.option_strings[-1]
    if action.nargs != 0:
        choices = f"{{{','.join(action.choices)}}}" if action.choices else ""
        values = choices or action.metavar or action.dest.upper()
        flag = f"{flag} {' '.join(values) if isinstance(values, tuple) else values}"
    default = action.default
    shown = "" if default in (None, False, []) else f"`{default}`"
    help_text = (action.help or "") % {"default": default, "prog": "", "metavar": action.metavar}
    required = "required; " if action.required else ""
    return f"| `{flag}` | {shown} | {required}{as_cell(help_text)} |"


# ------------------------------------------------------------------------------------------------- data doctor


def findings_reference() -> str:
    """Markdown: a table of what the inspection of data can find."""
    rows = [f"| {kind.severity} | {as_cell(kind.title)} | {as_cell(kind.advice)} |" for kind in KINDS.values()]
    return "\n".join(["| | what | what to do |", "|---|---|---|", *rows])
