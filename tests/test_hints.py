"""What our errors and pages advise to type, tried on the parsers and the settings themselves."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from mesalm.cli import parse, parser
from mesalm.settings import SettingsError
from mesalm.synthetic.recipe import SyntheticRecipe, load_synthetic_recipe
from mesalm.train.overrides import parse_override
from mesalm.train.recipe import NOT_MODEL_KEYS, Recipe, load_recipe, model_fields
from mesalm.tuning.prompt_tuning import tune_settings

ROOT = Path(__file__).parents[1]
COMMANDS = parser()._subparsers._group_actions[0].choices
SOURCES = sorted(
    file
    for room in ("mesalm", "eval/mesa_eval")
    for file in (ROOT / room).rglob("*.py")
    if ROOT / "mesalm/model" not in file.parents  # its errors are about arguments in Python
)
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "recipes/README.md", *(ROOT / "docs").rglob("*.md")]
)

LAUNCHER = set(launch_command_parser()._option_string_actions)
"""Options of `accelerate launch`."""
SECTIONS = "arms|checkpoint|data|grid|model|optim|sample|schedule|score|task|train|validate"
FLAG = re.compile(r"(?<![\w(-])(?<!var\()--[a-z][a-z_-]*|(?<=[^r]\()--[a-z][a-z_-]*")
WEIGHTS = "embeddings|embed_tokens|layers"
"""What stands behind `model.` in the names of weights."""
KEY = re.compile(rf"(?<![\w./])(?:{SECTIONS})\.(?!(?:config|{WEIGHTS})\b)[a-z_][\w.]*\w\b(?!\()")
SETTING = re.compile(r"(?<![\w./?&-])[a-z_]+(?:\.\w+)*=(?:[^\s,;:)`'=]+)")
PLACEHOLDERS = ("dotted.key=value",)
FILES = re.compile(r"\.(?:safetensors|json|jsonl|parquet|yaml|py|md)$")
SHOWN = "\x00"
"""Stands for what an f-string fills in."""


@cache
def options(command: object) -> frozenset[str]:
    """Return the options of a command and of its actions."""
    known = set(command._option_string_actions)
    for action in command._actions:
        if isinstance(getattr(action, "choices", None), dict):
            for inner in action.choices.values():
                known |= options(inner)
    return frozenset(known)


FLAGS = LAUNCHER.union(*map(options, COMMANDS.values()))


def advice(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of every string in a file that is no docstring."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    plain = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        if part != node
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else SHOWN for part in node.values)
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (plain | inside):
            yield node.lineno, node.value


@cache
def known_key(key: str) -> bool:
    """Tell whether a dotted key is a setting of some recipe; NAME and numbers stand for entries."""
    return any(pattern.fullmatch(key) for pattern in patterns())


@cache
def patterns() -> list[re.Pattern[str]]:
    return [re.compile(pattern) for pattern in dict.fromkeys(key_patterns())]


def key_patterns() -> Iterator[str]:
    rows = [row[0] for kind in (Recipe, SyntheticRecipe) for row in kind.describe()]
    for key in [*rows, *(f"model.{name}" for name in (*model_fields(), *NOT_MODEL_KEYS))]:
        parts = [
            r"(?:\d+|\x00)" if part == "0" else r"[\w\x00.-]+" if part == "NAME" else part for part in key.split(".")
        ]
        for length in range(1, len(parts) + 1):
            yield r"\.".join(parts[:length])
    yield r"(?:arms|task|grid)\.[\w\x00.]+"


@cache
def accepted(setting: str) -> bool:
    """Tell whether a hint ``key=value`` can be typed behind some recipe's name."""
    for value in ("X", "64", "100000"):
        text = setting.replace(SHOWN, value)
        for load in (
            lambda text: load_recipe("mixed-cpu", [text]),
            lambda text: load_recipe("mesa-1b", [text]),
            lambda text: load_synthetic_recipe("mqar-cpu", [text]),
        ):
            try:
                load(text)
            except SettingsError:
                continue
            return True
    try:
        return bool(tune_settings([setting.replace(SHOWN, "100000")]))
    except SettingsError:
        return False


def wrong_advice(text: str) -> Iterator[str]:
    """Yield every option, key and setting in a text that does not exist."""
    for command in re.finditer(r"`?mesalm ([a-z]+)((?: [^`;\n]*)?)", text):
        if command[1] in COMMANDS:
            yield from (
                f"mesalm {command[1]} {flag}"
                for flag in FLAG.findall(command[2])
                if flag not in options(COMMANDS[command[1]])
            )
    yield from (flag for flag in FLAG.findall(text) if flag not in FLAGS)
    yield from (key for key in KEY.findall(text) if not FILES.search(key) and not known_key(key))


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_advises_what_can_be_typed(file: Path) -> None:
    found = [(line, wrong) for line, text in advice(file) for wrong in wrong_advice(text)]
    assert not found
    raised = raised_lines(file)
    settings = [(line, setting) for line, text in advice(file) if line in raised for setting in SETTING.findall(text)]
    settings = [(line, setting) for line, setting in settings if setting not in PLACEHOLDERS]
    assert not [(line, setting) for line, setting in settings if not accepted(setting)]


def raised_lines(file: Path) -> set[int]:
    """Return the lines of a file in which something is told to a user: raised, said, or noted as a fault."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        name = getattr(getattr(node, "func", None), "attr", getattr(getattr(node, "func", None), "id", ""))
        if isinstance(node, ast.Raise) or name in ("say", "bad", "Faults"):
            lines |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def test_wrong_advice_is_found() -> None:
    for text in ("set skip_bad (--skip-bad)", "set data.skipbad", "`mesalm prepare --arm X`", "try --resum never"):
        assert list(wrong_advice(text)), text
    assert list(wrong_advice("mesalm train R\nmesalm eval R --resume"))
    for text in ("set data.skip_bad=true", "`mesalm train R --arm X`", "model.safetensors is gone", "var(--ink)"):
        assert not list(wrong_advice(text)), text
    assert accepted("data.skip_bad=true")
    assert not accepted("resume=never")
    assert not accepted("data.skip_bad=maybe")


def commands(code: str) -> Iterator[tuple[str, list[str]]]:
    """Yield every command of mesalm, its name and its words, in the code of a page; comments are left out."""
    for line in code.splitlines():
        for part in re.split(r"&&|\|\||;|\s&\s|\s\|\s", re.sub(r"\s#.*", "", line)):
            found = re.search(rf"(?:^|\s)mesalm ((?:{'|'.join(COMMANDS)})\b(?!:).*)", part)
            if found:
                command, *words = shlex.split(found[1].rstrip(" )"))
                yield command, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_shows_commands_that_can_be_typed(page: Path) -> None:
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    blocks = [*re.findall(r"^```\w*\n(.*?)^```", text, re.S | re.M), *re.findall(r"^ {4,}(\S.*)$", text, re.M)]
    sentences = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    for command, words in commands("\n".join([*blocks, *re.findall(r"`([^`\n]*)`", sentences)])):
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options(COMMANDS[command]), words
    for command, words in commands("\n".join(blocks)):
        given = parse([command, *words]) if "--help" not in words else None
        for override in getattr(given, "overrides", None) or []:
            key, value = parse_override(override)
            assert known_key(key) or command == "tune", override
            if command in ("train", "prepare") and not re.search("[A-Z]{3}", str(value)):
                assert accepted(override), override


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_settings_that_there_are(page: Path) -> None:
    named = re.findall(r"`([\w.]+)(?:=[^`]*)?`", page.read_text(encoding="utf-8"))
    named = [key for key in named if key != "model.push_to_hub"]  # a method
    assert not [key for key in named if KEY.fullmatch(key) and not FILES.search(key) and not known_key(key)]
