import os
from pathlib import Path

import pytest

from evenfield.errors import InputError, StorageError
from evenfield.files import whole, write_json


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "value.json"
    with whole(path) as file:
        file.write(b"all of it")
        assert not path.exists()
    assert path.read_bytes() == b"all of it"
    assert names(path.parent) == ["value.json"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_was_there_stays_when_writing_fails(tmp_path, error):
    path = tmp_path / "value.json"
    write_json(path, {"b": 1, "a": 2})
    before = path.read_bytes()
    expected = StorageError if isinstance(error, OSError) else KeyboardInterrupt

    def stop_half_way():
        with whole(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(expected):
        stop_half_way()
    assert path.read_bytes() == before
    assert names(tmp_path) == ["value.json"]


def test_the_error_names_the_file_and_what_to_do(tmp_path):
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(StorageError, match=r"cannot write .*taken/x\.json.*\n.*free some space"):
        write_json(tmp_path / "taken" / "x.json", 1)


def test_an_error_of_ours_comes_through_as_it_is(tmp_path):
    problem = StorageError("the store is full", fix="empty it")
    with pytest.raises(StorageError, match="the store is full"), whole(tmp_path / "x"):
        raise problem
    with pytest.raises(InputError, match="no such label"), whole(tmp_path / "x"):
        raise InputError("no such label", fix="use another")
    assert names(tmp_path) == []


def test_bytes_are_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    seen = []
    sync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: (seen.append("sync"), sync(number))[1])
    monkeypatch.setattr(Path, "replace", lambda a, b: (seen.append("rename"), rename(a, b))[1])
    write_json(tmp_path / "x.json", 1)
    assert seen == ["sync", "rename"]
