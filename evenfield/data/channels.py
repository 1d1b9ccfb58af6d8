"""Channels go by name, never by position: every spelling of the field, one key."""

from __future__ import annotations

import re
from collections.abc import Sequence

from evenfield.errors import InputError

_ALIASES = {
    "dapi": "dna",
    "hoechst": "dna",
    "nuclei": "dna",
    "actin": "agp",
    "mitochondria": "mito",
    "lowzbf": "brightfield_low",
    "bflow": "brightfield_low",
    "highzbf": "brightfield_high",
    "bfhigh": "brightfield_high",
}
_COLUMN = re.compile(r"(?:path_|filename_|url_)*(?:orig)?(.+)")


def channel_key(name: str) -> str:
    """What all spellings of a channel share; also of the columns that name its files.

    Aliases: mantispy and cell-painting-io.

    >>> [channel_key(n) for n in ("DNA", "Hoechst", "OrigDNA", "path_FileName_OrigDNA", "HighZBF")]
    ['dna', 'dna', 'dna', 'dna', 'brightfield_high']
    """
    bare = str(name).strip().lower()
    match = _COLUMN.fullmatch(bare)
    bare = match[1] if match else bare
    return _ALIASES.get(bare, bare)


def find_channels(wanted: Sequence[str], known: Sequence[str], where: str) -> list[str]:
    """The known name of each wanted channel: itself, or the only one with the same key.

    >>> find_channels(["Hoechst", "Mito"], ["Mito", "OrigDNA", "ER"], "index.csv")
    ['OrigDNA', 'Mito']

    Raises:
        InputError: No channel or none of that name, several that may be meant, or one named twice.
    """
    if not wanted:
        raise InputError("no channel is named", fix=f"choose from {', '.join(known)}")
    answer = []
    for name in wanted:
        same = [other for other in known if channel_key(other) == channel_key(name)]
        found = [name] if name in known else same
        if not found:
            raise InputError(
                f"{where} has no channel {name}", fix=f"choose from {', '.join(known) or 'none'}"
            )
        if len(found) > 1:
            raise InputError(
                f"{where}: channel {name} may be any of {', '.join(found)}", fix="name one of them"
            )
        answer += found
    twice = sorted({name for name in answer if answer.count(name) > 1})
    if twice:
        raise InputError(
            f"{', '.join(wanted)}: {', '.join(twice)} is named twice", fix="name each channel once"
        )
    return answer
