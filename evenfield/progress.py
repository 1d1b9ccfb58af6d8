"""The one place where progress is shown: a bar with the time left, plain lines, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")
LINE_SECONDS = 10.0
_quiet = [False]


def set_quiet(quiet: bool) -> None:
    """Show no progress from now on (or show it again)."""
    _quiet[0] = quiet


class Bar:
    """A bar on a terminal; elsewhere a line every ten seconds; nothing when quiet.

    Args:
        description: What is being done.
    """

    def __init__(self, description: str) -> None:
        self._description = description
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)
        self._bar: Progress | None = None
        self._last = time.monotonic()
        self._started = self._last

    def __enter__(self) -> Bar:
        if not _quiet[0] and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(escape(self._description), total=None, text="")
            self._bar.start()
        return self

    def update(self, done: float, total: float, text: str = "") -> None:
        """Say how much is done and what is going on."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, text=escape(text))
            return
        now = time.monotonic()
        if not _quiet[0] and now - self._last >= LINE_SECONDS:
            self._last = now
            share = done / total if total else 1.0
            left = (now - self._started) * (1 - share) / share if share > 0 else float("nan")
            sys.stderr.write(
                f"{self._description}: {share:4.0%}, about {left:.0f} s left  {text}\n"
            )
            sys.stderr.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def track(items: Iterable[T], description: str, *, total: int | None = None) -> Iterator[T]:
    """Yield the items and show how far it is."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Bar(description) as bar:
        for number, item in enumerate(items):
            bar.update(number, total or 0, f"{number}/{total}" if total else f"{number}")
            yield item
