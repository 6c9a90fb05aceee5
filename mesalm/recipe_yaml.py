"""Read and write YAML for recipes, with misleading rules of YAML 1.1 changed.

``1e-3`` is a number (YAML 1.1 requires ``1.0e-3``). ``010`` and ``1:30`` are text (in YAML 1.1 the numbers 8 and
90); a numeric setting reads the first as 10. A duplicate key is an error.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from mesalm.settings import SettingsError
from mesalm.wording import bad_byte

FLOAT = re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")
"""A number with an exponent, which YAML 1.1 reads as text where it has no point or no sign of the exponent."""

OTHER_BASE = re.compile(r"^[-+]?0[0-7_]+$|:")
"""What YAML 1.1 reads in base 8 or in base 60."""


class _RecipeLoader(yaml.SafeLoader):
    """A loader of plain data that refuses a key given twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # as written: construction later puts the keys of a merge before those that override them
        node = super().compose_mapping_node(anchor)
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen and key_node.value != "<<":
                    line = key_node.start_mark.line + 1
                    raise SettingsError(f"line {line}: {key_node.value} is given twice; keep one")
                seen.add(key_node.value)
        return node

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        """Return the number that a scalar looks like, or the text that it is."""
        if OTHER_BASE.search(node.value):
            return node.value
        return self.construct_yaml_float(node) if node.tag.endswith(":float") else self.construct_yaml_int(node)


for _kind in ("int", "float"):
    _RecipeLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _RecipeLoader.construct_number)


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds. Raises SettingsError, one line, for any other file."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"{path}: is not text in UTF-8 ({bad_byte(error)}); a recipe is a plain YAML file"
        ) from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror})") from None
    data = read_yaml(text, str(path))
    if not isinstance(data, dict):
        raise SettingsError(f"{path}: must hold a mapping of settings")
    return data


def read_yaml(text: str, where: str) -> Any:
    """Return the data a YAML text holds; raise SettingsError in one line that begins with ``where``."""
    try:
        return yaml.load(text, Loader=_RecipeLoader)
    except RecursionError:
        raise SettingsError(f"{where}: not valid YAML: it is nested too deeply") from None
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from None
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise SettingsError(f"{where}{line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None


def write_yaml(data: Any) -> str:
    """Return data as a YAML text that `read_yaml` reads back to equal data."""
    return yaml.dump(data, Dumper=_RecipeDumper, sort_keys=False, allow_unicode=True, width=100)


class _RecipeDumper(yaml.SafeDumper):
    """A writer of floats with their shortest exact digits and of strings that look like numbers in quotes."""


for _side in (_RecipeLoader, _RecipeDumper):  # the dumper leaves a string unquoted unless a resolver of its own matches
    _side.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789"))
