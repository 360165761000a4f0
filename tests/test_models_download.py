"""Fetching over HTTP: cut anywhere and resumed, and nothing half-installed whatever goes wrong."""

from __future__ import annotations

import errno
import fcntl
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gguf_files import small_model
from hub_stand_in import Hub, hub
from naiad.errors import ModelFileError
from naiad.models import download as downloading
from naiad.models import web
from naiad.models.download import Remote, download, part_of
from naiad.models.gguf import read_header

MODEL = small_model()


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@pytest.fixture
def server() -> Iterator[Hub]:
    with hub(files={"tiny.gguf": MODEL}) as state:
        yield state


def url_of(server: Hub, name: str = "tiny.gguf") -> str:
    return f"{server.url}/store/{name}"


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def at_once(seconds: float) -> None:
    """A pause that takes no time."""


def test_a_file_is_brought_and_told_of(server: Hub, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    target = tmp_path / "new" / "tiny.gguf"
    digest = hashlib.sha256(MODEL).hexdigest()
    remote = Remote(url_of(server), len(MODEL), digest.upper())
    download(remote, target, lambda *told: seen.append(told), check=read_header)
    assert target.read_bytes() == MODEL
    assert names_in(target.parent) == {"tiny.gguf"}
    assert ("downloading", len(MODEL), len(MODEL)) in seen
    assert seen[-1] == ("checking", len(MODEL), len(MODEL))


@pytest.mark.parametrize("cut_after", [13, 64, len(MODEL) // 2, len(MODEL) - 1])
def test_a_file_cut_at_every_chunk_is_put_together(
    server: Hub, tmp_path: Path, cut_after: int
) -> None:
    server.cut_after = cut_after
    target = tmp_path / "tiny.gguf"
    download(Remote(url_of(server)), target, silent, pause=at_once)
    assert target.read_bytes() == MODEL
    expected = ["", *(f"bytes={n}-" for n in range(cut_after, len(MODEL), cut_after))]
    assert server.ranges == expected


def test_a_later_run_goes_on_where_an_interrupted_one_stopped(server: Hub, tmp_path: Path) -> None:
    target = tmp_path / "tiny.gguf"
    server.cut_after = 100

    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(Remote(url_of(server)), target, interrupt)
    assert not target.exists()
    assert part_of(target).read_bytes() == MODEL[:100]
    server.cut_after = None
    download(Remote(url_of(server)), target, silent)
    assert server.ranges == ["", "bytes=100-"]
    assert target.read_bytes() == MODEL


@pytest.mark.parametrize("how", ["changed", "no ranges", "note lost"])
def test_what_cannot_go_on_begins_anew(server: Hub, tmp_path: Path, how: str) -> None:
    target = tmp_path / "tiny.gguf"
    part_of(target).write_bytes(b"x" * 50)
    if how != "note lost":
        downloading._write_note(target, '"v1"')
    server.version = '"v2"' if how == "changed" else '"v1"'
    server.ignores_ranges = how == "no ranges"
    download(Remote(url_of(server)), target, silent)
    assert target.read_bytes() == MODEL


@pytest.mark.parametrize("n_bytes", [0, len(MODEL)])
def test_a_beginning_that_is_longer_than_the_file_is_given_up(
    server: Hub, tmp_path: Path, n_bytes: int
) -> None:
    target = tmp_path / "tiny.gguf"
    part_of(target).write_bytes(MODEL + b"more")
    downloading._write_note(target, '"v1"')
    download(Remote(url_of(server), n_bytes), target, silent, pause=at_once)
    assert target.read_bytes() == MODEL
    assert names_in(tmp_path) == {"tiny.gguf"}


def test_more_bytes_than_promised_install_nothing(server: Hub, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"gave \d+ bytes where 40 were promised"):
        download(Remote(url_of(server), 40), tmp_path / "tiny.gguf", silent, pause=at_once)
    assert names_in(tmp_path) == set()


def test_a_connection_that_brings_nothing_is_given_up_in_words(server: Hub, tmp_path: Path) -> None:
    server.cut_after = 0
    pauses: list[float] = []
    target = tmp_path / "tiny.gguf"
    with pytest.raises(ModelFileError, match="connection was cut"):
        download(Remote(url_of(server)), target, silent, pause=pauses.append)
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    assert not target.exists()


def test_a_server_in_trouble_or_out_of_reach_is_named(server: Hub, tmp_path: Path) -> None:
    server.down = True
    with pytest.raises(ModelFileError, match="answered 500"):
        download(Remote(url_of(server)), tmp_path / "a", silent, pause=at_once)
    with pytest.raises(ModelFileError, match="refused"):
        download(Remote("http://127.0.0.1:9/x"), tmp_path / "a", silent, pause=at_once)
    server.down = False
    with pytest.raises(ModelFileError, match=r"no file at .*404"):
        download(Remote(f"{server.url}/nothing"), tmp_path / "b", silent)
    assert not (tmp_path / "a").exists()


def test_a_wrong_digest_installs_nothing_and_keeps_nothing(server: Hub, tmp_path: Path) -> None:
    server.lies.add("tiny.gguf")
    digest = hashlib.sha256(MODEL).hexdigest()
    with pytest.raises(ModelFileError, match=r"not the expected file .* nothing was installed"):
        download(Remote(url_of(server), sha256=digest), tmp_path / "tiny.gguf", silent)
    assert names_in(tmp_path) == set()


def test_a_page_in_place_of_a_model_is_refused(server: Hub, tmp_path: Path) -> None:
    server.files["tiny.gguf"] = b"<html>Please log in</html>"
    with pytest.raises(ModelFileError, match="cannot be used: it is not a usable GGUF file"):
        web.fetch(url_of(server), tmp_path, "", silent)
    assert names_in(tmp_path) == set()


class FullDisk:
    """A file that takes some bytes and then no more."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room
        self.name = file.name

    def write(self, data: bytes) -> int:
        if self._file.tell() + len(data) > self._room:
            self._file.write(data[: self._room - self._file.tell()])
            raise OSError(errno.ENOSPC, "No space left on device")
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_a_full_disk_is_told_and_what_came_is_kept(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "tiny.gguf"
    real = downloading._attempt
    with monkeypatch.context() as patch:
        patch.setattr(
            downloading,
            "_attempt",
            lambda remote, target, part, told: real(remote, target, FullDisk(part, 99), told),  # type: ignore[arg-type]
        )
        with pytest.raises(ModelFileError, match=r"disk is full\. .*the same command goes on"):
            download(Remote(url_of(server), len(MODEL)), target, silent)
    assert part_of(target).read_bytes() == MODEL[:99]
    download(Remote(url_of(server), len(MODEL)), target, silent)
    assert target.read_bytes() == MODEL
    assert server.ranges == ["", "bytes=99-"]


def test_too_little_room_is_told_before_anything_comes(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "shutil.disk_usage", lambda path: type("Usage", (), {"free": len(MODEL) - 1})()
    )
    with pytest.raises(ModelFileError, match="Not enough room"):
        download(Remote(url_of(server)), tmp_path / "tiny.gguf", silent)
    assert not (tmp_path / "tiny.gguf").exists()


def test_two_programs_do_not_write_the_same_file(server: Hub, tmp_path: Path) -> None:
    target = tmp_path / "tiny.gguf"
    with part_of(target).open("a+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ModelFileError, match="by another naiad"):
            download(Remote(url_of(server)), target, silent)


def test_a_login_is_not_told_to_whom_an_address_leads_on(server: Hub, tmp_path: Path) -> None:
    url = f"{server.url}/someone/Tiny-GGUF/resolve/main/tiny.gguf"
    remote = Remote(url, authorization="Bearer secret")
    download(remote, tmp_path / "tiny.gguf", silent)
    assert [given for _, given in server.authorizations] == ["Bearer secret", ""]


# --- addresses


def test_a_file_at_an_address_goes_into_the_folder_once(server: Hub, tmp_path: Path) -> None:
    path = web.fetch(url_of(server) + "?download=true", tmp_path, "", silent)
    assert path == tmp_path / "tiny.gguf"
    assert web.fetch(url_of(server), tmp_path, "", silent) == path
    assert len(server.ranges) == 1


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://a.example/x/My%20Model.Q4_K_M.gguf?x=1#y", "My Model.Q4_K_M.gguf"),
        ("https://a.example/A.GGUF", "A.GGUF"),
    ],
)
def test_the_name_is_the_addresss_last_part(url: str, name: str) -> None:
    assert web.filename_of(url) == name


@pytest.mark.parametrize("end", ["", "x.bin", ".gguf", "..%2F..%2F", "%2e%2e.gguf", "a%00.gguf"])
def test_other_names_are_refused(end: str) -> None:
    with pytest.raises(ModelFileError, match=r"must be the address of a GGUF file"):
        web.filename_of(f"https://a.example/{end}")


def test_plain_http_from_elsewhere_needs_a_digest() -> None:
    for url in ("http://a.example/x.gguf", "http://10.0.0.1/x.gguf", "ftp://a.example/x.gguf"):
        with pytest.raises(ModelFileError, match="--sha256"):
            web.require_safe(url, "")
    web.require_safe("http://a.example/x.gguf", "00" * 32)
    web.require_safe("https://a.example/x.gguf", "")
    web.require_safe("http://localhost:8000/x.gguf", "")
    web.require_safe("http://[::1]:8000/x.gguf", "")
