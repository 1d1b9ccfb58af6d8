import os

import numpy as np
import pandas as pd
import pytest

from evenfield.data.npz_features import read_site_features, write_site_features
from evenfield.data.profiles import read_profiles
from evenfield.errors import InputError
from evenfield.types import Profiles


def profiles(num=7, d=3):
    metadata = pd.DataFrame(
        {
            "Metadata_Plate": ["P2"] * 4 + ["P1"] * (num - 4),
            "Metadata_Well": ["B01", "B01", "A01", "B01"] + ["A01"] * (num - 4),
            "Metadata_Site": ["1"] * num,
            "Metadata_Location_X": np.arange(num) + 0.5,
            "Metadata_Location_Y": np.arange(num) * 2.0,
        }
    )
    features = np.random.default_rng(0).normal(size=(num, d)).astype(np.float32)
    return Profiles(features=features, names=("f_0", "f_1", "f_2"), metadata=metadata)


def test_what_is_written_is_read(tmp_path):
    cells = profiles()
    written = write_site_features(cells, tmp_path)
    names = [str(path.relative_to(tmp_path)) for path in written]
    assert names == ["P2/B01/1.npz", "P2/A01/1.npz", "P1/A01/1.npz"]
    site = read_site_features(tmp_path / "P2" / "B01" / "1.npz")
    np.testing.assert_array_equal(site.features, cells.features[[0, 1, 3]])
    np.testing.assert_array_equal(site.locations, [[0.5, 0], [1.5, 2], [3.5, 6]])
    assert site.metadata is None
    # The whole folder through the door of profiles.
    again = read_profiles(tmp_path)
    order = again.metadata.Metadata_Plate + again.metadata.Metadata_Well
    np.testing.assert_array_equal(again.features[order == "P1A01"], cells.features[4:])
    assert again.metadata.Metadata_Object[order == "P2B01"].tolist() == ["0", "1", "2"]


def test_names_that_are_none(tmp_path):
    cells = profiles()
    cells.metadata.loc[0, "Metadata_Plate"] = "../P2"
    with pytest.raises(InputError, match="cannot name a file"):
        write_site_features(cells, tmp_path)
    assert not any(tmp_path.iterdir())
    bare = Profiles(
        features=cells.features,
        names=cells.names,
        metadata=cells.metadata.drop(columns="Metadata_Site"),
    )
    with pytest.raises(InputError, match="lack Metadata_Site"):
        write_site_features(bare, tmp_path)


def deepprofiler_file(path, metadata, num=2, cells=2):
    """As DeepProfiler writes it: a dictionary as an object array."""
    np.savez_compressed(
        path,
        features=np.ones((cells, 3), np.float32),
        locations=np.zeros((num, 2)),
        metadata=np.array(metadata, dtype=object),
    )
    return path


def test_metadata_on_request_only(tmp_path):
    told = {"Metadata_Plate": "0012", "Metadata_Site": np.int64(3), "moa": None, "xy": [1.5, 2]}
    path = deepprofiler_file(tmp_path / "1.npz", told)
    assert read_site_features(path).metadata is None
    assert read_site_features(path, metadata=True).metadata == told


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["EVENFIELD_BOMB"],)


def test_metadata_run_no_code(tmp_path, monkeypatch):
    monkeypatch.setenv("EVENFIELD_BOMB", str(tmp_path / "exploded"))
    path = deepprofiler_file(tmp_path / "1.npz", {"a": Bomb()})
    assert read_site_features(path).features.shape == (2, 3)
    with pytest.raises(InputError, match=r"no plain values: it asks for \w+\.mkdir"):
        read_site_features(path, metadata=True)
    assert not (tmp_path / "exploded").exists()


def test_files_that_are_wrong(tmp_path):
    uneven = deepprofiler_file(tmp_path / "1.npz", {}, num=3)
    with pytest.raises(InputError, match="features of 2 cells and 3 locations"):
        read_site_features(uneven)
    listed = deepprofiler_file(tmp_path / "2.npz", [1, 2])
    with pytest.raises(InputError, match="no dictionary"):
        read_site_features(listed, metadata=True)
    np.savez(tmp_path / "3.npz", features=np.ones((2, 3)))
    with pytest.raises(InputError, match="no plain values"):
        read_site_features(tmp_path / "3.npz", metadata=True)
    (tmp_path / "4.npz").write_bytes(uneven.read_bytes()[:100])
    with pytest.raises(InputError, match=r"4\.npz cannot be read"):
        read_site_features(tmp_path / "4.npz")
