"""Fields whose channels are files in a `Tree`, divided by their plate's illumination functions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from evenfield.data.decode import join_channels
from evenfield.data.tree import Tree
from evenfield.errors import InputError


class TreeFields:
    """The files of each row.

    Args:
        tree: Reads them.
        paths: One tuple a row, one file a channel.
        lights: The illumination functions of each row, one a channel, or none.
    """

    def __init__(
        self, tree: Tree, paths: Sequence[tuple[str, ...]], lights: Sequence[tuple[str, ...]]
    ) -> None:
        self._tree, self._paths, self._lights = tree, list(paths), list(lights)
        # Rows come plate after plate: two plates are at work at most.
        self._light = lru_cache(maxsize=2)(self._read_light)

    def name(self, row: int) -> str:
        """The row's first file."""
        return self._paths[row][0]

    def choose(self, rows: Sequence[int]) -> TreeFields:
        """The files of some rows."""
        paths, lights = ([of[row] for row in rows] for of in (self._paths, self._lights))
        return TreeFields(self._tree, paths, lights)

    def missing(self) -> dict[int, list[str]]:
        """Rows with files that are not there, by listing each folder once."""
        lost = {
            row: [path for path in paths if not self._tree.has(path)]
            for row, paths in enumerate(self._paths)
        }
        return {row: paths for row, paths in lost.items() if paths}

    def read(self, row: int) -> np.ndarray:
        """A site, (C, H, W), divided by its illumination functions where it has some.

        Raises:
            InputError: A file is missing or damaged, or sizes or types differ.
        """
        images = [self._tree.image(path) for path in self._paths[row]]
        image = join_channels(images, self.name(row))
        if not self._lights[row]:
            return image
        light = self._light(self._lights[row])
        if light.shape != image.shape:
            raise InputError(
                f"{self.name(row)}: is {image.shape[1]} x {image.shape[2]}, its illumination "
                f"function {light.shape[1]} x {light.shape[2]}",
                fix="use the functions of this release, or set illumination to off",
            )
        return flatten(image, light)

    def _read_light(self, paths: tuple[str, ...]) -> np.ndarray:
        planes = [self._tree.array(path) for path in paths]
        for path, plane in zip(paths, planes, strict=True):
            if plane.ndim != 2 or plane.shape != planes[0].shape or not (plane > 0).all():
                raise InputError(
                    f"{path}: shape {plane.shape} is no illumination function (one number above 0 "
                    "a pixel, one size a plate)",
                    fix="copy the file again, or set illumination to off",
                )
        return np.stack(planes).astype(np.float32)


def flatten(image: np.ndarray, light: np.ndarray) -> np.ndarray:
    """An image over its illumination function, rounded into the image's own type.

    >>> flatten(np.array([[[10, 65535]]], np.uint16), np.array([[[4.0, 0.5]]])).tolist()
    [[[2, 65535]]]
    """
    if image.dtype.kind == "f":
        return image / light
    flat, limits = np.empty_like(image), np.iinfo(image.dtype)
    for plane, function, out in zip(image, light, flat, strict=True):
        values = plane / function
        np.rint(values, out=values)
        out[...] = np.clip(values, limits.min, limits.max, out=values)
    return flat
