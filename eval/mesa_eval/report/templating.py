"""Self-contained HTML pages rendered from templates, in one style for all reports."""

from __future__ import annotations

from typing import Any

import jinja2
from markupsafe import Markup

from mesalm.wording import plural


def render(template: str, **content: Any) -> str:
    """Return a page as HTML; templates share the style sheet ``style``, the program ``script`` and `plural`.

    Text in ``content`` is escaped unless it is Markup; an undefined name in the template raises an error.
    """
    loader = jinja2.PackageLoader("mesa_eval.report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    shared = {
        name: Markup(loader.get_source(environment, source)[0])
        for name, source in (("style", "report.css"), ("script", "sort.js"))
    }
    return environment.get_template(template).render(plural=plural, **shared, **content)
