"""The frame that all pages share: one style, one head, one foot."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

_HERE = Path(__file__).parent


def template(name: str) -> Template:
    """A page's template, with the style and the scripts that it carries inside.

    Args:
        name: Of its `.html` and `.js`, without the ending.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts = [(_HERE / f"{part}.js").read_text(encoding="utf-8") for part in ("common", name)]
    environment.globals["style"] = Markup(environment.get_template("page.css").render().strip())
    environment.globals["script"] = Markup("\n".join(scripts).strip())
    return environment.get_template(f"{name}.html")
