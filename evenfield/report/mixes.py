"""The figure of ContriMix: content maps, and the content of one image under another's attribute."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from markupsafe import Markup

from evenfield.report.images import data_uri
from evenfield.report.svg import drawing, element, title

CELL, GAP, LEFT, TOP = 84.0, 6.0, 128.0, 34.0
NAMES = {
    "ssim": "structural similarity to the original",
    "content": "correlation of the content maps",
    "features": "shift of the classifier's features, in units of their own variance",
}


def mix_figure(arrays: Mapping[str, np.ndarray]) -> Markup:
    """Rows: an image, its content maps, and its content under the attribute of each column's image.

    Args:
        arrays: What `evenfield.bench.mixes.Mixes` holds.
    """
    parts, width, height = _parts(arrays)
    return drawing(parts, width=width, height=height, label=_alternative(arrays), class_="mixes")


def mix_file(arrays: Mapping[str, np.ndarray]) -> str:
    """The same figure, with its numbers below, as an SVG file that needs nothing else."""
    parts, width, height = _parts(arrays)
    lines = [f"{name}: {text}" for name, text in score_lines(arrays)]
    for place, line in enumerate(lines):
        parts.append(element("text", line, x=GAP, y=height + 18 * (place + 1)))
    height += 18 * len(lines) + 10
    style = "text{font:12px sans-serif;fill:#17212b}.middle{text-anchor:middle}"
    paper = element("rect", width=width, height=height, fill="#ffffff")
    return str(
        element(
            "svg",
            element("style", Markup(style)),
            title(_alternative(arrays)),
            paper,
            *parts,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {width:g} {height:g}",
            width=width,
            height=height,
        )
    )


def score_lines(arrays: Mapping[str, np.ndarray]) -> list[tuple[str, str]]:
    """Each number in words: what is measured, and its value for reconstructions and for mixes."""
    score = dict(zip(arrays["score_name"].tolist(), arrays["score"].tolist(), strict=True))
    pairs = {name: (score[f"{name} reconstruction"], score[f"{name} mix"]) for name in NAMES}
    return [
        (text, "{:.3f} reconstructed, {:.3f} mixed".format(*pairs[name]))
        for name, text in NAMES.items()
    ]


def _alternative(arrays: Mapping[str, np.ndarray]) -> str:
    names = ", ".join(arrays["title"].tolist())
    return f"Images of {names}: content maps, and each content under each attribute."


def _parts(arrays: Mapping[str, np.ndarray]) -> tuple[list[Markup], float, float]:
    titles = arrays["title"].tolist()
    num_maps = arrays["content"].shape[1]
    step = CELL + GAP
    parts: list[Markup] = []

    def text(words: str, column: int, y: float, span: int = 1) -> None:
        at = LEFT + column * step + (span * step - GAP) / 2
        parts.append(element("text", words, x=at, y=y, class_="tick middle"))

    def cell(image: np.ndarray, column: int, row: int, words: str) -> None:
        place = {"x": LEFT + column * step, "y": TOP + row * step, "width": CELL, "height": CELL}
        href = data_uri(np.ascontiguousarray(image))
        parts.append(element("image", title(words), href=href, **place))

    text("image", 0, 14)
    text("content maps", 1, 14, num_maps)
    text("content of the row under the attribute of", 1 + num_maps, 14, len(titles))
    for row, name in enumerate(titles):
        middle = TOP + row * step + CELL / 2 + 4
        parts.append(element("text", name, x=GAP, y=middle, class_="tick"))
        text(name, 1 + num_maps + row, 30)
        cell(arrays["image"][row], 0, row, name)
        for number, grey in enumerate(arrays["content"][row]):
            words = f"{name}: content map {number + 1}"
            cell(np.repeat(grey[..., None], 3, axis=2), 1 + number, row, words)
        for column, other in enumerate(titles):
            words = f"content of {name}, attribute of {other}"
            cell(arrays["mix"][row, column], 1 + num_maps + column, row, words)
    width = LEFT + (1 + num_maps + len(titles)) * step
    return parts, width, TOP + len(titles) * step
