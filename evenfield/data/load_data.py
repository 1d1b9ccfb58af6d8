"""CellProfiler's load_data: where the image of each channel and its illumination function lie.

Two forms: FileName_OrigDNA with PathName_OrigDNA, and the Cell Painting Gallery's URL_OrigDNA; with
`Illum` in the place of `Orig` for illumination functions.
"""

from __future__ import annotations

import re

import pandas as pd

from evenfield.data.names import as_text
from evenfield.errors import InputError

_COLUMN = re.compile(r"(?:URL|FileName)_(Illum|Orig|)(.+)")


def named_channels(table: pd.DataFrame, kind: str = "Orig") -> list[str]:
    """The channels that columns name, in their order; columns without a kind count as images.

    >>> named_channels(pd.DataFrame(columns=["URL_OrigDNA", "FileName_ER", "FileName_IllumDNA"]))
    ['DNA', 'ER']
    """
    matches = (_COLUMN.fullmatch(str(column)) for column in table.columns)
    kinds = {kind, ""} if kind == "Orig" else {kind}
    return list(dict.fromkeys(match[2] for match in matches if match and match[1] in kinds))


def locations(table: pd.DataFrame, channel: str, kind: str = "Orig") -> list[str] | None:
    """One location a row, as the table writes it; None where no column names the channel.

    A folder and a file are joined by one slash, whether or not the folder ends with one.

    >>> row = pd.DataFrame({"PathName_OrigER": ["s3://b/p/"], "FileName_OrigER": ["x.tiff"]})
    >>> locations(row, "ER")
    ['s3://b/p/x.tiff']
    """
    for kind_ in (kind, "") if kind == "Orig" else (kind,):
        url, file, path = (f"{what}_{kind_}{channel}" for what in ("URL", "FileName", "PathName"))
        if url in table:
            return as_text(table[url])
        if file in table:
            names = as_text(table[file])
            if path not in table:
                return names
            folders = [folder.rstrip("/\\") for folder in as_text(table[path])]
            return [
                f"{folder}/{name}" if folder else name
                for folder, name in zip(folders, names, strict=True)
            ]
    return None


def below(location: str, source: str, root: str, replace: tuple[tuple[str, str], ...] = ()) -> str:
    """Where a location of the Gallery lies below the project's folder.

    Tables name the bucket, or the disk of the machine that made them: what comes before
    `<source>/images/` is replaced by `root`, unless a rule says otherwise.

    >>> below("/home/u/x/source_4/images/B1/images/P/a.tiff", "source_4", "/data/cpg0016-jump")
    '/data/cpg0016-jump/source_4/images/B1/images/P/a.tiff'

    Args:
        location: As the table writes it.
        source: The source's name, a folder of the project.
        root: The project's folder, on this machine or anywhere.
        replace: What locations begin with, and what stands for it.

    Raises:
        InputError: The location has no `<source>/images/` and no rule fits.
    """
    location = location.replace("\\", "/")
    for old, new in replace:
        if location.startswith(old):
            return new + location[len(old) :]
    before, mark, rest = f"/{location}".partition(f"/{source}/images/")
    del before
    if not mark:
        raise InputError(
            f"{location!r} does not lie below {source}/images/",
            fix="say where it lies with `replace`, as old=new",
        )
    return f"{root.rstrip('/')}{mark}{rest}"
