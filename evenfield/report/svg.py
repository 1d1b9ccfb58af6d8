"""Small SVG by hand: the same numbers give the same bytes, and colours follow the page's theme."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup, escape


def num(value: float) -> str:
    """A coordinate with at most one decimal.

    >>> num(3.0), num(2.25), num(-0.01)
    ('3', '2.2', '0')
    """
    text = f"{value:.1f}".rstrip("0").rstrip(".")
    return "0" if text in {"-0", ""} else text


def element(name: str, *children: object, **attributes: object) -> Markup:
    """An element; underscores in names become hyphens, a trailing one is dropped, text is escaped.

    >>> str(element("text", "a<b", x=1.0, class_="tick"))
    '<text x="1" class="tick">a&lt;b</text>'
    """
    written = []
    for key, value in attributes.items():
        if value is None:
            continue
        shown = num(value) if isinstance(value, int | float) else escape(str(value))
        written.append(Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), shown))
    inside = Markup("").join(escape(child) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), Markup("").join(written), inside)


def drawing(
    children: Iterable[Markup], *, width: float, height: float, label: str, class_: str = ""
) -> Markup:
    """An SVG image with a text alternative."""
    return element(
        "svg",
        Markup("").join(children),
        viewBox=f"0 0 {num(width)} {num(height)}",
        role="img",
        aria_label=label,
        class_=f"drawing {class_}".strip(),
        style=f"max-width:{num(width)}px",
    )


def title(text: str) -> Markup:
    """What a pointer shows over an element."""
    return element("title", text)
