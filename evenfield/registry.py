"""A named choice of a configuration: one registry a room, filled by the files of that room."""

from collections.abc import Callable, Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import Generic, TypeVar

from evenfield.errors import InputError

T = TypeVar("T")


class Registry(Generic[T]):
    """Classes by name. The files of `package` are imported on the first look-up, never before.

    A new choice is a new file with `@REGISTRY.register("name")`; nothing else is edited.

    >>> from evenfield.registry import Registry
    >>> shapes = Registry("shape", package=None)
    >>> @shapes.register("disk")
    ... class Disk: ...
    >>> list(shapes), shapes["disk"] is Disk
    (['disk'], True)
    """

    def __init__(self, noun: str, *, package: str | None) -> None:
        self.noun = noun
        self._package = package
        self._items: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Register the decorated class under `name` (also set as its attribute `name`)."""

        def keep(cls: type[T]) -> type[T]:
            if name in self._items:
                raise ValueError(f"two {self.noun}s are called {name!r}")
            cls.name = name  # type: ignore[attr-defined]
            self._items[name] = cls
            return cls

        return keep

    def _load(self) -> None:
        if self._package is None:
            return
        package, self._package = self._package, None
        for module in iter_modules(import_module(package).__path__):
            if module.name not in {"base"}:
                import_module(f"{package}.{module.name}")

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._items))

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._items

    def __getitem__(self, name: str) -> type[T]:
        self._load()
        if name not in self._items:
            raise InputError(
                f"there is no {self.noun} called {name!r}",
                fix=f"choose one of: {', '.join(self)}",
            )
        return self._items[name]
