import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenfield.errors import InputError, StorageError
from evenfield.records import Record, append, digest, read


def value(**fields):
    return Record(**{"kind": "value", "metric": "accuracy", "value": 0.5, **fields})


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=9),
    st.none() | st.floats(0.001, 10),
    st.dictionaries(st.text(max_size=4), st.integers() | st.none(), max_size=3),
)
def test_a_line_brings_its_record_back(number, unit, alpha, extra):
    record = value(value=number, unit=unit, alpha=alpha, extra=extra, num=3)
    assert "\n" not in record.to_json()
    assert Record.from_json(record.to_json()) == record


def test_nan_is_refused():
    with pytest.raises(ValueError, match="JSON compliant"):
        value(value=float("nan")).to_json()


def test_a_line_cut_short_is_ignored_and_overwritten(tmp_path):
    append(tmp_path, [value(seed=1)])
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"kind": "va')
    assert [r.seed for r in read(tmp_path)] == [1]
    append(tmp_path, [value(seed=2)])
    assert [r.seed for r in read(tmp_path)] == [1, 2]
    assert all(json.loads(line) for line in (tmp_path / "records.jsonl").open())


def test_a_repeated_cell_counts_once(tmp_path):
    append(tmp_path, [value(cell="a", value=0.1), value(cell="b", value=0.2)])
    append(tmp_path, [value(cell="a", value=0.1), value(cell="a", protocol="x", value=0.3)])
    assert sorted(r.value for r in read(tmp_path)) == [0.1, 0.2, 0.3]


def test_unknown_keys_of_a_newer_version_are_dropped():
    line = json.loads(value().to_json()) | {"brand_new": 1}
    assert Record.from_json(json.dumps(line)) == value()


def test_no_records_and_no_disk(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="there are no records"):
        read(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(StorageError, match="No space"):
        append(tmp_path, [value()])


def test_digest_ignores_the_order_of_keys():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
