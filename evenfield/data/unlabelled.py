"""New plates as a method that learns without labels may see them: asking for a label is an error.

A reader of this kind never holds the column of labels, so that what is called unlabelled cannot
turn out to be labelled by accident.
"""

from __future__ import annotations

from copy import copy
from dataclasses import fields
from typing import NoReturn

import numpy as np
import torch

from evenfield.config import View
from evenfield.data.dataset import Reader
from evenfield.data.roles import Roles
from evenfield.data.store import Screen
from evenfield.data.transforms import Normaliser
from evenfield.data.units import Units, units
from evenfield.errors import InputError
from evenfield.types import UNKNOWN, Needs


class BlindUnits(Units):
    """A manifest in codes, without the labels."""

    __slots__ = ()

    @classmethod
    def of(cls, coded: Units) -> BlindUnits:
        """The same units without their labels."""
        blind = object.__new__(cls)
        for item in fields(Units):
            if item.name != "label":
                object.__setattr__(blind, item.name, getattr(coded, item.name))
        return blind

    @property
    def label(self) -> NoReturn:
        """Raise.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "labels of plates that a model adapts to were asked for",
            fix="read them with a `Reader`, after the adaptation",
        )


class Unlabelled(Reader):
    """Reads images of new plates without ever touching the column of labels.

    Args:
        screen: The new plates.
        roles: Which column plays which role.
        view: What the network may see.
        normaliser: Of the trained model.
        device: Where batches go.
        needs: What its batches are for.

    Attributes:
        roles: As given.
    """

    def __init__(
        self,
        screen: Screen,
        roles: Roles,
        view: View,
        normaliser: Normaliser,
        device: torch.device,
        needs: Needs | None = None,
    ) -> None:
        blind = copy(screen)
        blind.manifest = screen.manifest.drop(columns=roles.label, errors="ignore")
        coded = units(blind.manifest.assign(**{roles.label: ""}), roles, classes=())
        super().__init__(blind, BlindUnits.of(coded), view, normaliser, device, needs)
        self.roles = roles

    def labels(self, rows: np.ndarray) -> np.ndarray:
        """Every label is unknown."""
        return np.full(len(rows), UNKNOWN, np.int64)
