"""Results of measuring: whose they are, how they are kept, and what spoils them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest

from naiad.config import Tuning
from naiad.tune import record as records
from naiad.tune.record import Measured, Record


def a_record(**changes: Any) -> Record:
    values: dict[str, Any] = {
        "version": records.VERSION,
        "model": "tiny",
        "model_fingerprint": "m" * 32,
        "build_fingerprint": "b" * 32,
        "measured_at": "2026-01-01T00:00:00+00:00",
        "is_quick": True,
        "seconds": 20.0,
        "profiles": {"default": Tuning(threads=2, source="here")},
        "measured": [Measured(profile="default", what="threads 1", ratio=1.9)],
    }
    return Record(**values | changes)


def load(folder: Path) -> Record | None:
    return records.load("m" * 32, "b" * 32, folder)


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    path = records.save(a_record(), tmp_path / "new")
    assert load(tmp_path / "new") == a_record()
    assert list(path.parent.iterdir()) == [path]  # no draft is left


def test_a_later_result_takes_the_place_of_an_earlier(tmp_path: Path) -> None:
    records.save(a_record(), tmp_path)
    records.save(a_record(seconds=99.0), tmp_path)
    found = load(tmp_path)
    assert found is not None
    assert found.seconds == 99.0


def test_another_model_or_build_has_a_result_of_its_own(tmp_path: Path) -> None:
    records.save(a_record(), tmp_path)
    assert records.load("x" * 32, "b" * 32, tmp_path) is None
    assert records.load("m" * 32, "x" * 32, tmp_path) is None
    # the file's name holds half of the fingerprint only; what is in it decides
    assert records.load("m" * 16 + "x" * 16, "b" * 32, tmp_path) is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"null", b"[]", b'{"version": 1}', b"\xff\xfe", b"0" * 100]
)
def test_garbage_is_ignored_with_a_note(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    records.save(a_record(), tmp_path).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path) is None
    assert "is ignored" in caplog.text


def test_another_version_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = records.save(a_record(version=records.VERSION + 1), tmp_path)
    with caplog.at_level(logging.INFO):
        assert load(tmp_path) is None
    assert "another version" in caplog.text
    newer = msgspec.json.decode(path.read_bytes()) | {"version": 1, "unknown": 3}
    path.write_bytes(msgspec.json.encode(newer))
    assert load(tmp_path) is not None  # fields that a later version adds do no harm


def test_what_cannot_be_read_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = records.path_of("m" * 32, "b" * 32, tmp_path)
    path.mkdir()
    assert load(tmp_path) is None
    assert "is ignored" in caplog.text


def test_models_are_told_apart_by_size_beginning_and_end(tmp_path: Path) -> None:
    contents = [b"a" * 3_000_000, b"a" * 3_000_001, b"b" + b"a" * 2_999_999, b"short", b""]
    contents.append(b"a" * 2_999_999 + b"b")
    paths = [tmp_path / str(i) for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    prints = {records.model_fingerprint(path) for path in paths}
    assert len(prints) == len(contents)
    copy = tmp_path / "copy"
    copy.write_bytes(contents[0])
    assert records.model_fingerprint(copy) == records.model_fingerprint(paths[0])
    assert {len(fingerprint) for fingerprint in prints} == {32}


def test_the_build_is_told_apart_by_its_libraries_and_the_processors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = records.build_fingerprint()
    assert here == records.build_fingerprint()
    monkeypatch.setattr(records, "_usable_processors", lambda: 999)
    assert records.build_fingerprint() != here
    monkeypatch.undo()
    monkeypatch.setattr(records, "_processor", lambda: "another")
    assert records.build_fingerprint() != here
    monkeypatch.undo()
    monkeypatch.setattr(records, "find_spec", lambda _: None)
    assert records.build_fingerprint() != here


def test_the_starters_result_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, starter, within = tmp_path / "own", tmp_path / "starter", tmp_path / "tuning"
    own.write_bytes(b"own")
    monkeypatch.setattr(records, "build_fingerprint", lambda: "b" * 32)
    assert records.find(own, starter, within) is None
    starter.write_bytes(b"starter")
    assert records.find(own, starter, within) is None
    fingerprint = records.model_fingerprint(starter)
    records.save(a_record(model="starter", model_fingerprint=fingerprint), within)
    found = records.find(own, starter, within)
    assert found is not None
    assert found.model == "starter"
    assert records.find(own, None, within) is None
    records.save(a_record(model="own", model_fingerprint=records.model_fingerprint(own)), within)
    found = records.find(own, starter, within)
    assert found is not None
    assert found.model == "own"
