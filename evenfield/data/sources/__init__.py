"""Readers: one kind of input a file, each a table of fields and a function that decodes one."""

from evenfield.data.sources.base import SOURCES

__all__ = ["SOURCES"]
