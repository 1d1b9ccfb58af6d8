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


def below(
    location: str,
    source: str,
    batch: str,
    root: str,
    replace: tuple[tuple[str, str], ...] = (),
) -> str:
    """Where a location of the Gallery lies below the project's folder.

    Tables name the bucket, or the disk of the machine that made them: what comes before
    `<source>/images/`, or before `<batch>/images/` or `<batch>/illum/`, is replaced, unless a rule
    says otherwise.

    >>> below("/home/u/source_4/images/B1/images/P/a.tiff", "source_4", "B1", "/data/jump")
    '/data/jump/source_4/images/B1/images/P/a.tiff'
    >>> below("/home/u/projects/x/B1/images/P/a.tiff", "source_4", "B1", "/data/jump")
    '/data/jump/source_4/images/B1/images/P/a.tiff'

    Args:
        location: As the table writes it.
        source: The source's name, a folder of the project.
        batch: The batch's name, a folder of the source.
        root: The project's folder, on this machine or anywhere.
        replace: What locations begin with, and what stands for it.

    Raises:
        InputError: The location has none of these folders and no rule fits.
    """
    location = location.replace("\\", "/")
    for old, new in replace:
        if location.startswith(old):
            return new + location[len(old) :]
    images = f"{source}/images"
    for mark, place in (
        (f"/{images}/", images),
        (f"/{batch}/images/", f"{images}/{batch}/images"),
        (f"/{batch}/illum/", f"{images}/{batch}/illum"),
    ):
        _, found, rest = f"/{location}".partition(mark)
        if found:
            return f"{root.rstrip('/')}/{place}/{rest}"
    raise InputError(
        f"{location!r} does not lie below {images}/ or {batch}/images/",
        fix="say where it lies with `replace`, as old=new",
    )
