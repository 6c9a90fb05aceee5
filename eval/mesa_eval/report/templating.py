"""Pages from templates: text that refers to no resource outside it, in one style for all reports."""

from __future__ import annotations

from typing import Any

import jinja2
from markupsafe import Markup

from mesalm.wording import plural


def render(template: str, **content: Any) -> str:
    """Return a page as HTML; the template reads ``style`` and ``script``, the sheet and the program of all pages.

    It also has `plural`. Text in ``content`` is escaped unless it is Markup; a name that nobody gives is an error.
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
