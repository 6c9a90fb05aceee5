"""Links between pages lead to files and headings that there are; `make docs` sees those of the site alone."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(page for room in ("docs", "kernels", "recipes", "tests") for page in sorted((ROOT / room).rglob("*.md"))),
]


def prose(page: Path) -> str:
    """Return a page without its code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        found = (page.parent / place).resolve() if place else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.name)
def test_a_page_of_the_site_links_to_pages_of_the_site(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", prose(page)):
        if not re.match(r"[a-z]+:", target):
            found = (page.parent / target).resolve()
            assert found.is_relative_to(ROOT / "docs"), target
            assert found.is_file(), target


def test_the_architecture_and_the_notebook_name_files_that_there_are() -> None:
    shelves = (ROOT, ROOT / "mesalm", ROOT / "eval/mesa_eval")
    for page, least in (("docs/architecture.md", 10), ("docs/ten-minutes.ipynb", 5)):
        named = re.findall(r"`((?:[a-z_]+/)+(?:[\w-]+\.\w+)?)`", (ROOT / page).read_text(encoding="utf-8"))
        assert len(named) >= least, page
        assert not [name for name in named if not any((shelf / name).exists() for shelf in shelves)], page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_programs_that_there_are(page: Path) -> None:
    """Or those that the page itself writes, or a commit that had them, named in the same paragraph."""
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    written = {Path(title).stem for title in re.findall(r'title="([\w/]+)\.py"', text)}
    paragraphs = [part for part in text.split("\n\n") if not re.search(r"\bcommit [0-9a-f]{7}\b", part)]
    named = {name for part in paragraphs for name in re.findall(r"(?<![\w*/.])[\w/-]*\w\.py\b", part)}
    named = {name for name in named if not any(Path(name).stem.endswith(stem) for stem in written)}
    named = {name for name in named if Path(name).stem not in sys.stdlib_module_names}
    rooms = ("mesalm", "eval", "kernels", "tests", "docs", ".ci")
    files = [f"/{file.relative_to(ROOT)}" for room in rooms for file in (ROOT / room).rglob("*.py")]
    assert not [name for name in sorted(named) if not any(file.endswith(f"/{name}") for file in files)]
