"""The Cell Painting Gallery in small: three Target-2 plates of two sources, and one that is not."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile

CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito")
DMSO, EMPTY = "JCP2022_033924", "JCP2022_999999"
LAYOUT = {"A01": "JCP2022_000001", "A02": DMSO, "B01": "JCP2022_000002", "B02": EMPTY}
PLATES = [  # source, batch, plate, type, form of load_data
    ("source_3", "CP_25", "JCPQC016", "TARGET2", "classic"),
    ("source_3", "CP_26", "JCPQC017", "TARGET2", "url"),
    ("source_3", "CP_26", "0123", "COMPOUND", "classic"),
    ("source_8", "J3", "A1166127", "TARGET2", "illum"),
]
DISK = "/home/ubuntu/bucket/projects/jump"
BUCKET = "s3://cellpainting-gallery/cpg0016-jump"


def pixel(plate: int, row: int, channel: int) -> int:
    """What the first pixel of an image holds: it tells which file was read."""
    return 1000 * (plate + 1) + 10 * row + channel


def sites() -> list[tuple[str, int]]:
    return [(well, site) for well in LAYOUT for site in (1, 2)]


def write_tables(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    plates = pd.DataFrame([p[:4] for p in PLATES]).set_axis(
        ["Metadata_Source", "Metadata_Batch", "Metadata_Plate", "Metadata_PlateType"], axis=1
    )
    wells = pd.DataFrame(
        [
            {
                "Metadata_Source": source,
                "Metadata_Plate": plate,
                "Metadata_Well": well,
                "Metadata_JCP2022": jcp,
            }
            for source, _, plate, *_ in PLATES
            for well, jcp in LAYOUT.items()
        ]
    )
    compounds = pd.DataFrame(
        {
            "Metadata_JCP2022": ["JCP2022_000001", "JCP2022_000002", DMSO],
            "Metadata_InChIKey": [f"{letter * 14}-UHFFFAOYSA-N" for letter in "ABD"],
            "Metadata_InChI": ["InChI=1S/A", "InChI=1S/B", "InChI=1S/D"],
        }
    )
    control = pd.DataFrame(
        {
            "Metadata_JCP2022": [EMPTY, DMSO, "JCP2022_000002"],
            "Metadata_pert_type": ["empty", "negcon", "poscon"],
            "Metadata_Name": ["Empty", "DMSO", "AMG900"],
            "Metadata_modality": ["any", "compound", "compound"],
        }
    )
    scope = pd.DataFrame(
        {
            "Metadata_Source": ["source_3", "source_8"],
            "Metadata_Microscope_Name": ["Opera Phenix", "ImageXpress Micro Confocal"],
            "Metadata_Pixel_Size_Microns": ["0.5", "1.0"],
        }
    )
    plates.to_csv(folder / "plate.csv.gz", index=False)
    wells.to_csv(folder / "well.csv.gz", index=False)
    compounds.to_csv(folder / "compound.csv.gz", index=False)
    control.to_csv(folder / "perturbation_control.csv", index=False)
    scope.to_csv(folder / "microscope_config.csv", index=False)
    return folder


def write_gallery(root: Path, *, side: int = 16, compression: str = "lzw") -> Path:
    """`root`/source/images and workspace, in the three forms of load_data."""
    rng = np.random.default_rng(0)
    for number, (source, batch, plate, _, form) in enumerate(PLATES):
        # A coarser microscope has fewer pixels for the same field.
        size = side // 2 if source == "source_8" else side
        full = f"{plate}__2021-05-02T16_02_51-Measurement1"
        images = f"{source}/images/{batch}/images/{full}/Images"
        (root / images).mkdir(parents=True)
        rows = []
        for row, (well, site) in enumerate(sites()):
            line = {
                "Metadata_Source": source,
                "Metadata_Batch": batch,
                "Metadata_Plate": plate,
                "Metadata_Well": {"classic": well.lower(), "url": well}.get(form, well),
                "Metadata_Site": str(site),
            }
            for channel, name in enumerate(CHANNELS):
                file = f"r0{'AB'.index(well[0]) + 1}c{well[1:]}f0{site}p01-ch{channel + 1}.tiff"
                image = rng.integers(0, 60000, (size, size)).astype(np.uint16)
                image[0, 0] = pixel(number, row, channel)
                tifffile.imwrite(root / images / file, image, compression=compression)
                if form == "url":
                    line[f"URL_Orig{name}"] = f"{BUCKET}/{images}/{file}"
                else:
                    line[f"FileName_Orig{name}"] = file
                    line[f"PathName_Orig{name}"] = f"{DISK}/{images}/"
                if form == "illum":
                    light = f"{source}/images/{batch}/illum/{plate}"
                    line[f"FileName_Illum{name}"] = f"{plate}_Illum{name}.npy"
                    line[f"PathName_Illum{name}"] = f"{BUCKET}/{light}"
            rows.append(line)
        table = pd.DataFrame(rows)
        folder = root / f"{source}/workspace/load_data_csv/{batch}/{plate}"
        folder.mkdir(parents=True)
        if form == "illum":
            table.to_parquet(folder / "load_data_with_illum.parquet", index=False)
        else:
            table.to_csv(folder / "load_data.csv.gz", index=False)
    return root


def write_light(root: Path, *, value: float = 2.0, side: int = 8) -> Path:
    """Functions of the plate of source_8: the whole plate is `value` times too bright."""
    folder = root / "source_8/images/J3/illum/A1166127"
    folder.mkdir(parents=True)
    for name in CHANNELS:
        np.save(folder / f"A1166127_Illum{name}.npy", np.full((side, side), value))
    return folder


def only(root: Path, *sources: str) -> None:
    """Remove the images of other sources; their load_data stays."""
    for source in {plate[0] for plate in PLATES} - set(sources):
        shutil.rmtree(root / source / "images")
