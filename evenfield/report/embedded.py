"""Data for a page's script."""

from __future__ import annotations

import json
from typing import Any

from markupsafe import Markup


def script_json(value: Any) -> Markup:
    r"""JSON that may stand in a script element: nothing in it can end the element or open markup.

    >>> str(script_json({"well": "</script>&"}))
    '{"well":"\\u003c/script\\u003e\\u0026"}'
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    # Inside a script element only these can end it or open markup.
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
