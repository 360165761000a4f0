"""`naiad cache`: what it shows and what it deletes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from naiad.cli import cache, settings
from naiad.cli.main import run
from naiad.engine import disk_folder
from naiad.engine.disk_folder import DIR_ENV, block_name
from test_cli import loaded_by
from test_cli_processes import a_note

Output = pytest.CaptureFixture[str]
MIB = 1 << 20


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(settings, "default_file", lambda: tmp_path / "naiad.toml")
    folder = tmp_path / "cache"
    monkeypatch.setenv(DIR_ENV, str(folder))
    return folder


def fill(root: Path, letter: str, model: str | None, n_blocks: int, used_at: int) -> Path:
    """A fingerprint's folder with blocks of one MiB each."""
    folder = root / (letter * 32)
    folder.mkdir(parents=True)
    if model is not None:
        disk_folder.write_about(folder, {"model": model})
    for i in range(n_blocks):
        path = folder / block_name(bytes([i] * 16))
        path.write_bytes(bytes(MIB))
        os.utime(path, (used_at, used_at))
    return folder


def test_nothing_is_said_to_be_nothing(root: Path, capsys: Output) -> None:
    assert run(["cache"]) == 0
    assert capsys.readouterr().out == f"Nothing is cached in {root}.\n"
    assert run(["cache", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert run(["cache", "--clear"]) == 0
    assert capsys.readouterr().err == f"Deleted 0.0 MiB from {root}.\n"
    assert not root.exists()


def test_each_model_and_build_is_a_line_the_last_used_first(root: Path, capsys: Output) -> None:
    old = fill(root, "a", "Big-Model", 3, 1_700_000_000)
    new = fill(root, "b", "Tiny", 1, 1_800_000_000)
    assert run(["cache"]) == 0
    first, second, total = capsys.readouterr().out.splitlines()
    assert first.split()[:5] == ["Tiny", "1", "blocks", "1.0", "MiB"]
    assert first.endswith(str(new))
    assert "2027-01-1" in first
    assert second.split()[:5] == ["Big-Model", "3", "blocks", "3.0", "MiB"]
    assert second.endswith(str(old))
    assert total == "4.0 MiB in all."


def test_as_json(root: Path, capsys: Output) -> None:
    folder = fill(root, "a", "Tiny", 2, 1_700_000_000)
    assert run(["cache", "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert row == {
        "model": "Tiny",
        "path": str(folder),
        "n_blocks": 2,
        "size_bytes": 2 * MIB,
        "last_used": "2023-11-14T22:13:20+00:00",
    }


def test_servers_that_run_tell_what_they_used(
    capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"n_saved": 1234, "n_from_memory": 5, "n_from_disk": 6, "n_bytes_in_memory": 3 * MIB}
    told = {8001: {"cache": counts}, 8002: {}}  # one that does not answer
    monkeypatch.setattr(cache, "running", lambda: [a_note(port=port) for port in told])
    monkeypatch.setattr(cache, "glance", lambda server: told[int(server.url[-4:])])
    assert run(["cache"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "Tiny at http://127.0.0.1:8001: 1,234 saved, reused 5 from memory and 6 from disk, "
        "3.0 MiB in memory."
    ]


@pytest.mark.parametrize("about", [None, b"", b"[]", b"{}", b"\xff", b'{"model": 5'])
def test_a_folder_that_says_nothing_of_itself(
    root: Path, capsys: Output, about: bytes | None
) -> None:
    folder = fill(root, "a", None, 0, 0)
    if about is not None:
        (folder / disk_folder.ABOUT).write_bytes(about)
    assert run(["cache"]) == 0
    assert capsys.readouterr().out.split()[:5] == ["unknown", "model", "0", "blocks", "0.0"]
    assert run(["cache", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["last_used"] is None


def test_clear_deletes_all_of_it_and_says_how_much(root: Path, capsys: Output) -> None:
    fill(root, "a", "Big-Model", 3, 5)
    fill(root, "b", None, 1, 5)
    (root / "mine").mkdir()
    assert run(["cache", "--clear"]) == 0
    assert capsys.readouterr().err == f"Deleted 4.0 MiB from {root}.\n"
    assert [path.name for path in root.iterdir()] == ["mine"]


def test_what_cannot_be_deleted_is_a_sentence(
    root: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(root, "a", "Tiny", 1, 5)

    def fail(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", fail)
    assert run(["cache", "--clear"]) == 1
    assert "cannot be cleared: Permission denied." in capsys.readouterr().err


def test_the_folder_may_be_a_flag_or_come_from_the_settings_file(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "other", "a", "Tiny", 1, 5)
    assert run(["cache", "--disk-cache-dir", str(tmp_path / "other")]) == 0
    assert "Tiny" in capsys.readouterr().out
    monkeypatch.delenv(DIR_ENV)
    (tmp_path / "naiad.toml").write_text(f'disk_cache_dir = "{tmp_path / "other"}"\n')
    assert run(["cache"]) == 0
    assert "Tiny" in capsys.readouterr().out


@pytest.mark.soak
def test_it_loads_little() -> None:
    assert not loaded_by("cache") & {"uvicorn", "starlette", "rich", "llama_cpp", "numpy"}
