"""Print which releases of the dependencies pip is to install, from pyproject.toml, whose upper bounds are left out.

python .ci/releases.py newest    # of everything the newest
python .ci/releases.py oldest    # of what the package needs the lower bounds; the tools of the tests are the newest
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def requirements(which: str) -> list[str]:
    """Return one requirement for each dependency."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = []
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["eval"]]
    for asked in (*needed, *extras["dev"]):
        name, lower, marker = re.fullmatch(r"([\w.\[\]-]+)(?:>=([\w.]+))?[^;]*(;.*)?", asked).groups(default="")
        pinned = which == "oldest" and (asked in needed or name == "peft")
        found.append(f"{name}=={lower}{marker}" if pinned else f"{name}{marker}")
    return found


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1])))
