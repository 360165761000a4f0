"""The disk tier: what comes back is what was saved, and whatever goes wrong is a miss."""

from __future__ import annotations

import errno
import logging
import os
import random
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from naiad.engine import disk_cache, disk_folder, disk_format, write_behind
from naiad.engine.blocks import Entry
from naiad.engine.disk_cache import DiskCache
from naiad.engine.disk_folder import key_named
from naiad.engine.disk_format import Damaged, block_key, root_key
from naiad.engine.fingerprint import file_identity, fingerprint, parts_of
from naiad.engine.host_cache import BLOCK, HostCache
from patience import PATIENCE_S

PRINT, OTHER_PRINT = b"f" * 16, b"g" * 16
MIB = 1 << 20
Host = HostCache[bytes]


def open_store(root: Path, capacity: int = MIB, mark: bytes = PRINT) -> DiskCache[bytes]:
    return DiskCache[bytes](root, mark, capacity, bytes, {"model": "some model"})


def open_host(root: Path, memory: int = MIB, capacity: int = MIB, mark: bytes = PRINT) -> Host:
    return HostCache[bytes](memory, open_store(root, capacity, mark))


def store_of(host: Host) -> DiskCache[bytes]:
    store = host._store
    assert isinstance(store, DiskCache)
    return store


def state(tokens: list[int], start: int) -> bytes:
    """A state that says what it is of; some hundred bytes."""
    return repr((start, tokens[: start + BLOCK])).encode()


def save(host: Host, namespace: str, tokens: list[int]) -> None:
    for start in list(host.missing(namespace, tokens)):
        data = state(tokens, start)
        host.add(namespace, tokens, start, data, len(data))
        host.check_integrity()


def flush(host: Host) -> None:
    assert store_of(host).flush(PATIENCE_S)


def n_known(host: Host, namespace: str, tokens: list[int]) -> int:
    return sum(match.n_tokens for match in host.match(namespace, tokens))


def n_right(host: Host, namespace: str, tokens: list[int]) -> int:
    """How many tokens have a state; each state must be exactly the one of its place."""
    n = 0
    for match in host.match(namespace, tokens):
        found = host.state_of(match.block)
        host.check_integrity()
        if found is None:
            break
        own = tokens[: match.block.start] + match.block.tokens
        assert found == state(own, match.block.start)
        n += match.n_tokens
    return n


def blocks_in(root: Path) -> list[Path]:
    return sorted(root.glob("*/*.kv"))


def kept(root: Path, *prompts: list[int], namespace: str = "") -> Host:
    """A cache that has written these prompts to disk."""
    host = open_host(root)
    for tokens in prompts:
        save(host, namespace, tokens)
    flush(host)
    return host


LONG = list(range(1000, 1000 + 3 * BLOCK + 17))


# -- across restarts ------------------------------------------------------------------------------


def test_a_new_process_finds_what_the_last_one_wrote(tmp_path: Path) -> None:
    kept(tmp_path, LONG)
    host = open_host(tmp_path)
    host.check_integrity()
    assert (host.n_bytes, host.n_blocks_in_store) == (0, 4)
    assert n_known(host, "", [*LONG, 5]) == len(LONG)
    assert n_right(host, "", [*LONG, 5]) == len(LONG)
    assert n_right(host, "", LONG[: BLOCK + 5]) == BLOCK + 5
    assert list(host.missing("", LONG)) == []
    assert host.counts.n_from_disk == 4
    assert host.counts.n_bytes_from_disk == host.n_bytes > 0


def test_branches_and_longer_tails_come_back(tmp_path: Path) -> None:
    other = [*LONG[: BLOCK + 60], *[7] * 100]
    kept(tmp_path, LONG[:200], LONG, other)
    host = open_host(tmp_path)
    assert [n_right(host, "", tokens) for tokens in (LONG, other)] == [len(LONG), len(other)]
    assert len(blocks_in(tmp_path)) == 6  # the tail of 72 tokens was replaced by a whole block


def test_nothing_is_made_before_something_is_saved(tmp_path: Path) -> None:
    flush(open_host(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_a_namespace_sees_only_its_own(tmp_path: Path) -> None:
    kept(tmp_path, LONG, namespace="alice")
    host = open_host(tmp_path)
    assert n_known(host, "bob", LONG) == n_known(host, "", LONG) == 0
    assert n_right(host, "alice", LONG) == len(LONG)


def test_files_name_neither_the_namespace_nor_the_state_s_text(tmp_path: Path) -> None:
    kept(tmp_path, LONG, namespace="alice's key")
    written = b"".join(path.name.encode() + path.read_bytes() for path in tmp_path.rglob("*.*"))
    assert b"alice" not in written
    assert root_key(PRINT, "alice's key") != root_key(PRINT, "bob's key")
    assert root_key(PRINT, "\udcff") != root_key(PRINT, "")  # any string is a namespace


def test_another_fingerprint_s_files_are_not_read(tmp_path: Path) -> None:
    kept(tmp_path, LONG)
    assert n_known(open_host(tmp_path, mark=OTHER_PRINT), "", LONG) == 0
    folder = tmp_path / OTHER_PRINT.hex()
    blocks_in(tmp_path)[0].parent.rename(folder)  # as if somebody had moved them over
    assert n_known(open_host(tmp_path, mark=OTHER_PRINT), "", LONG) == 0
    assert blocks_in(tmp_path) == []


def test_files_and_folders_are_for_this_user_alone(tmp_path: Path) -> None:
    root = tmp_path / "a" / "cache"
    kept(root, LONG)
    for path in [root, *root.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_a_folder_that_others_could_read_is_shut(tmp_path: Path) -> None:
    kept(tmp_path, LONG)
    folder = tmp_path / PRINT.hex()
    folder.chmod(0o755)
    assert n_right(open_host(tmp_path), "", LONG) == len(LONG)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_of_another_user_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept(tmp_path, LONG)
    monkeypatch.setattr(os, "geteuid", lambda: -5)
    host = open_host(tmp_path)
    assert "no folder of this user" in caplog.text
    assert n_known(host, "", LONG) == 0
    save(host, "", LONG)
    flush(host)
    assert n_right(host, "", LONG) == len(LONG)  # memory still works
    assert host.n_blocks_in_store == 0


# -- damage ---------------------------------------------------------------------------------------


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_wrong_byte_is_a_miss(tmp_path: Path, data: st.DataObject) -> None:
    kept(tmp_path, LONG)
    path = data.draw(st.sampled_from(blocks_in(tmp_path)))
    whole = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(whole) - 1))
    early = data.draw(st.booleans())
    running = open_host(tmp_path)  # it has seen the header before it went bad
    whole[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    host = open_host(tmp_path) if early else running
    assert n_right(host, "", LONG) % BLOCK == 0  # what is used is right, see n_right
    assert n_right(host, "", LONG) < len(LONG)
    flush(host)
    assert not path.exists()
    save(host, "", LONG)
    flush(host)
    assert n_right(open_host(tmp_path), "", LONG) == len(LONG)


@pytest.mark.parametrize(
    "change", [lambda b: b[:-1], lambda b: b[:50], lambda b: b"", lambda b: b * 2]
)
@pytest.mark.parametrize("is_running", [True, False])
def test_a_file_of_another_length_is_a_miss(
    tmp_path: Path, change: Callable[[bytes], bytes], is_running: bool
) -> None:
    kept(tmp_path, LONG[:100])
    [path] = blocks_in(tmp_path)
    host = open_host(tmp_path)
    path.write_bytes(change(path.read_bytes()))
    host = host if is_running else open_host(tmp_path)
    assert n_right(host, "", LONG) == 0
    flush(host)
    assert not path.exists()


def test_a_file_under_another_s_name_is_a_miss(tmp_path: Path) -> None:
    kept(tmp_path, [1] * 50, [2] * 50)
    a, b = blocks_in(tmp_path)
    host = open_host(tmp_path)
    a.write_bytes(b.read_bytes())
    assert n_right(host, "", [1] * 50) + n_right(host, "", [2] * 50) == 50
    assert open_host(tmp_path).n_blocks_in_store == 1


def test_a_damaged_block_takes_along_what_follows_it_and_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept(tmp_path, LONG)
    host = open_host(tmp_path)
    second = host.match("", LONG)[1].block
    path = tmp_path / PRINT.hex() / disk_folder.block_name(second.key)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    matches = host.match("", LONG)
    assert host.state_of(matches[0].block) is not None
    assert host.state_of(matches[1].block) is None
    assert host.state_of(matches[2].block) is None
    flush(host)
    assert len(blocks_in(tmp_path)) == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "checksum" in caplog.text
    assert host.counts.n_lost == 1


def test_a_file_that_is_gone_is_a_miss_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept(tmp_path, LONG)
    host = open_host(tmp_path)
    for path in blocks_in(tmp_path):
        path.unlink()
    assert n_right(host, "", LONG) == 0
    assert caplog.text == ""


def test_a_file_that_cannot_be_read_is_a_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept(tmp_path, LONG)
    host = open_host(tmp_path)

    def fail(path: Path, size: int) -> bytes:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(disk_cache, "_read_whole", fail)
    assert n_right(host, "", LONG) == 0
    assert "the disk is broken" in caplog.text


def test_blocks_without_a_beginning_are_deleted(tmp_path: Path) -> None:
    host = kept(tmp_path, LONG)
    first = host.match("", LONG)[0].block
    (tmp_path / PRINT.hex() / disk_folder.block_name(first.key)).unlink()
    host = open_host(tmp_path)
    assert host.n_blocks_in_store == 0
    flush(host)
    assert blocks_in(tmp_path) == []


def test_what_a_crash_left_half_written_is_deleted_later(tmp_path: Path) -> None:
    kept(tmp_path, LONG[:100])
    folder = tmp_path / PRINT.hex()
    [whole] = blocks_in(tmp_path)
    old, young = folder / f".{'0' * 32}.1.tmp", folder / f".{'1' * 32}.2.tmp"
    for path in (old, young):
        path.write_bytes(whole.read_bytes()[:77])
    os.utime(old, (0, 0))
    (folder / "notes.txt").write_text("not ours")
    host = open_host(tmp_path)
    assert n_right(host, "", LONG) == 100
    # The young one may be another server's, which is writing it right now.
    names = {path.name for path in folder.iterdir()}
    assert names == {whole.name, young.name, "notes.txt", disk_folder.ABOUT}


def test_a_crash_between_draft_and_rename_leaves_nothing_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt  # nothing after it runs, as after kill -9

    drafts: list[bytes] = []
    folder = tmp_path / PRINT.hex()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", die)
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
        folder.mkdir()
        with disk_folder.drafting(folder / disk_folder.block_name(b"k" * 16)) as descriptor:
            os.write(descriptor, b"half")
            drafts.append(b"made")
    assert drafts
    assert [path.suffix for path in folder.iterdir()] == [".tmp"]
    assert open_host(tmp_path).n_blocks_in_store == 0


# -- when writing fails ---------------------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """The disk is full until the yielded function is called."""
    write = disk_cache._write_whole
    is_full = [True]

    def fail(descriptor: int, data: memoryview) -> None:
        if is_full[0]:
            os.write(descriptor, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(descriptor, data)

    monkeypatch.setattr(disk_cache, "_write_whole", fail)
    yield lambda: is_full.__setitem__(0, False)


def test_a_full_disk_is_told_once_and_memory_goes_on(
    tmp_path: Path, full_disk: object, caplog: pytest.LogCaptureFixture
) -> None:
    host = open_host(tmp_path)
    for i in range(5):
        tokens = [i] * 200
        save(host, "", tokens)
        flush(host)
        assert n_right(host, "", tokens) == 200
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No space left" in caplog.text
    assert blocks_in(tmp_path) == list(tmp_path.glob("*/.*")) == []
    assert store_of(host).n_bytes == 0


def test_after_a_pause_all_of_a_conversation_is_written(
    tmp_path: Path, full_disk: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = open_host(tmp_path)
    save(host, "", LONG[:200])
    flush(host)
    full_disk()
    save(host, "", LONG[:300])
    flush(host)
    assert blocks_in(tmp_path) == []  # still paused
    store_of(host)._paused_until = 0
    save(host, "", LONG)
    flush(host)
    assert n_right(open_host(tmp_path), "", LONG) == len(LONG)


def test_what_memory_let_go_of_before_it_failed_to_be_written_is_a_miss(
    tmp_path: Path, full_disk: object
) -> None:
    host = open_host(tmp_path, memory=0)
    save(host, "", LONG)
    flush(host)
    assert n_known(host, "", LONG) == 0
    assert list(host.missing("", LONG)) == [0, BLOCK, 2 * BLOCK, 3 * BLOCK]
    host.check_integrity()


def test_what_was_lost_in_the_middle_of_a_conversation_is_found_before_anything_is_put(
    tmp_path: Path,
) -> None:
    """Its first block is in memory, the second was let go of, and then none could be written."""
    size = max(len(state(LONG, start)) for start in (0, BLOCK, 2 * BLOCK))
    host = open_host(tmp_path, memory=10 * size)
    store = store_of(host)
    store._behind.add = lambda job: None  # type: ignore[method-assign]
    for start in (0, BLOCK):
        data = state(LONG, start)
        assert host.add("", LONG, start, data, len(data))
    host._let_go(host.match("", LONG)[1].block)
    store._pause(OSError("full"))
    data = state(LONG, 2 * BLOCK)
    assert not host.add("", LONG, 2 * BLOCK, data, len(data))
    host.check_integrity()
    assert n_known(host, "", LONG) == BLOCK
    host.check_integrity()


def test_asking_for_what_was_lost_harms_nothing(tmp_path: Path) -> None:
    host = open_host(tmp_path, memory=0)
    store = store_of(host)
    store._behind.add = lambda job: None  # type: ignore[method-assign]
    save(host, "", LONG[:100])
    [match] = host.match("", LONG)
    store._pause(OSError("full"))
    assert not host.fetch([match.block], set())
    host.check_integrity()
    assert n_known(host, "", LONG) == 0
    host.check_integrity()


# -- a longer block in the place of a shorter one -------------------------------------------------


def test_a_longer_block_that_cannot_be_written_leaves_the_shorter_one_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = kept(tmp_path, LONG[:200])
    with monkeypatch.context() as patch:
        patch.setattr(disk_cache, "_write_whole", raise_no_space)
        save(host, "", LONG[:220])
        save(host, "", LONG[:240])
        flush(host)
        assert n_right(host, "", LONG) == 240  # from memory
    assert n_right(open_host(tmp_path), "", LONG) == 200
    store_of(host)._paused_until = 0
    save(host, "", LONG)
    flush(host)
    assert n_right(open_host(tmp_path), "", LONG) == len(LONG)


def raise_no_space(descriptor: int, data: memoryview) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_whenever_a_process_dies_one_of_the_two_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a second longer one comes before the first is written."""
    host = kept(tmp_path, LONG[:200])
    jobs: list[bytes] = []
    monkeypatch.setattr(store_of(host)._behind, "add", jobs.append)
    for n in (220, 240):
        save(host, "", LONG[:n])
    known = [n_right(open_host(tmp_path), "", LONG)]
    for job in jobs:
        store_of(host)._do(job)
        known.append(n_right(open_host(tmp_path), "", LONG))
    assert known == sorted(known)
    assert (known[0], known[-1]) == (200, 240)
    assert len(blocks_in(tmp_path)) == 2
    assert store_of(host).n_bytes == sum(path.stat().st_size for path in blocks_in(tmp_path))


def test_a_bound_deletes_nothing_that_waits_to_be_replaced(tmp_path: Path) -> None:
    """The bound holds again once the longer one is written."""
    size = disk_format.n_header(90) + len(state([1] * 90, 0))
    host = open_host(tmp_path, capacity=2 * size + disk_format.N_HEADER_MOST)
    save(host, "", [1] * 80)
    flush(host)
    store = store_of(host)
    store._behind.add = lambda job: None  # type: ignore[method-assign]
    save(host, "", [1] * 90)
    store._n_since_look = store.capacity
    store._make_room(size)
    assert n_right(open_host(tmp_path), "", [1] * 90) == 80


def test_what_came_back_meanwhile_is_not_deleted(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    short, long = entry([1] * 50), entry([1] * 90)
    for each in (short, long):
        store.put(each, b"12345")
    assert store.flush(20)
    store.put(long, b"12345")
    store.replace(short.key, long.key)
    assert not store.holds(short.key)
    store.put(short, b"12345")
    assert store.flush(20)
    assert store.get(short.key) == store.get(long.key) == b"12345"
    store.replace(short.key, long.key)  # which is written already
    assert store.flush(20)
    assert [path.name for path in blocks_in(tmp_path)] == [disk_folder.block_name(long.key)]


def test_what_is_saved_again_before_it_was_written_still_replaces(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    short, long = entry([1] * 50), entry([1] * 90)
    store.put(short, b"12345")
    assert store.flush(20)
    store.put(long, b"12345")
    store.replace(short.key, long.key)
    store.put(long, b"67890")
    assert store.flush(20)
    assert store.get(long.key) == b"67890"
    assert [path.name for path in blocks_in(tmp_path)] == [disk_folder.block_name(long.key)]


def test_no_thread_to_write_with_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    host = open_host(tmp_path)
    save(host, "", LONG)
    assert n_right(host, "", LONG) == len(LONG)
    assert "can't start new thread" in caplog.text


def test_a_writer_that_gets_no_processor_in_the_middle_of_a_file_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writes the file and those that follow it; the first comes to its end long after."""
    stuck, may_go_on = threading.Event(), threading.Event()
    write = disk_cache._write_whole
    host = open_host(tmp_path)
    behind = store_of(host)._behind
    wait = behind._wait

    def starve(descriptor: int, data: memoryview) -> None:
        if threading.current_thread().name == "naiad-disk-idle":
            stuck.set()
            with behind._changed:
                behind._changed.notify_all()
            assert may_go_on.wait(PATIENCE_S)
        write(descriptor, data)

    def wait_until_it_is_stuck(until: Callable[[], bool], timeout_s: float) -> bool:
        """Its time is over once it is stuck, however late it gets there."""
        if behind._at_work is not None and not stuck.is_set():
            assert behind._changed.wait_for(stuck.is_set, PATIENCE_S)
            return False
        return wait(until, timeout_s)

    monkeypatch.setattr(behind, "_wait", wait_until_it_is_stuck)
    monkeypatch.setattr(disk_cache, "_write_whole", starve)
    monkeypatch.setattr(write_behind, "REST_S", 0.0)
    monkeypatch.setattr(write_behind, "PATIENT_S", PATIENCE_S)
    monkeypatch.setattr(write_behind, "WITHIN_S", 0.02)
    save(host, "", LONG)
    assert stuck.wait(PATIENCE_S)
    assert behind.wait(PATIENCE_S)  # nobody hurries it
    assert n_right(open_host(tmp_path), "", LONG) == len(LONG)
    may_go_on.set()
    for thread in threading.enumerate():
        if thread.name == "naiad-disk-idle":
            thread.join(PATIENCE_S)
    flush(host)
    assert list(tmp_path.glob("*/.*")) == []
    assert n_right(open_host(tmp_path), "", LONG) == len(LONG)


def test_a_writer_that_wakes_after_the_block_was_removed_does_not_bring_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = open_host(tmp_path)
    store = store_of(host)
    write = disk_cache._write_whole

    def write_late(descriptor: int, data: memoryview) -> None:
        write(descriptor, data)
        host.clear()

    jobs: list[bytes] = []
    monkeypatch.setattr(store._behind, "add", jobs.append)
    save(host, "", LONG[:100])
    monkeypatch.setattr(disk_cache, "_write_whole", write_late)
    store._do(jobs[0])
    assert blocks_in(tmp_path) == list(tmp_path.glob("*/.*")) == []


# -- memory over disk -----------------------------------------------------------------------------


def test_what_memory_lets_go_of_comes_back_from_disk(tmp_path: Path) -> None:
    prompts = [[i] * 90 for i in range(6)]
    host = open_host(tmp_path, memory=3 * len(state(prompts[0], 0)))
    for tokens in prompts:
        save(host, "", tokens)
    flush(host)
    assert host.n_bytes <= host.capacity
    assert all(n_right(host, "", tokens) == 90 for tokens in prompts)
    assert host.counts.n_from_disk >= 3
    assert host.n_bytes <= host.capacity


def test_without_memory_the_disk_is_enough(tmp_path: Path) -> None:
    host = open_host(tmp_path, memory=0)
    save(host, "", LONG)
    assert n_right(host, "", LONG) == len(LONG)  # some of it still waits to be written
    flush(host)
    assert n_right(host, "", LONG) == len(LONG)
    assert host.n_bytes == 0


def test_only_so_much_waits_to_be_written_outside_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write = threading.Event()
    write = disk_cache._write_whole

    def wait(descriptor: int, data: memoryview) -> None:
        assert may_write.wait(PATIENCE_S)
        write(descriptor, data)

    monkeypatch.setattr(disk_cache, "_write_whole", wait)
    size = len(state([1] * 90, 0))
    monkeypatch.setattr(disk_cache, "N_DETACHED_MOST", 2 * size)
    host = open_host(tmp_path, memory=2 * size)
    for i in range(1, 8):
        save(host, "", [i] * 90)
    held = [i for i in range(1, 8) if n_known(host, "", [i] * 90)]
    assert held == [1, 2, 6, 7]
    may_write.set()
    flush(host)
    assert store_of(host)._n_detached == 0
    assert [n_right(host, "", [i] * 90) for i in held] == [90] * 4


def test_the_least_recently_used_leaves_of_the_disk_go_first(tmp_path: Path) -> None:
    stem = [9] * BLOCK
    prompts = [[*stem, *[i] * 100] for i in range(3)]
    sizes = [disk_format.N_HEADER_MOST + len(state(prompts[0], at)) for at in (0, BLOCK)]
    capacity = sizes[0] + 2 * sizes[1]
    host = open_host(tmp_path, capacity=capacity)
    save(host, "", prompts[0])
    save(host, "", prompts[1])
    assert n_right(host, "", prompts[0]) == len(prompts[0])
    save(host, "", prompts[2])
    flush(host)
    assert sum(path.stat().st_size for path in blocks_in(tmp_path)) <= capacity
    again = open_host(tmp_path)
    assert [n_right(again, "", tokens) for tokens in prompts] == [228, 128, 228]
    assert n_right(host, "", prompts[1]) == 228  # memory has its own order


def test_a_prompt_longer_than_the_disk_is_kept_as_far_as_it_fits(tmp_path: Path) -> None:
    host = open_host(tmp_path, memory=20_000, capacity=6_000)
    save(host, "", list(range(3 * BLOCK)))
    save(host, "", [5] * 2000)
    flush(host)
    assert store_of(host).n_bytes <= 6_000
    again = open_host(tmp_path)
    assert 0 < n_right(again, "", [5] * 2000) < 2000
    again.check_integrity()


def test_a_smaller_bound_takes_effect_at_the_start(tmp_path: Path) -> None:
    kept(tmp_path, *[[i] * 90 for i in range(8)])
    host = open_host(tmp_path, capacity=3000)
    assert 0 < host.n_blocks_in_store < 8
    assert store_of(host).n_bytes <= 3000
    assert n_right(host, "", [7] * 90) == 90
    flush(host)
    assert sum(path.stat().st_size for path in blocks_in(tmp_path)) <= 3000


def test_use_in_the_last_life_counts_in_the_next(tmp_path: Path) -> None:
    kept(tmp_path, LONG, [1] * 90, [2] * 90)
    for path in blocks_in(tmp_path):
        os.utime(path, ns=(10**18, 10**18))
    host = open_host(tmp_path)
    assert n_right(host, "", LONG) == len(LONG)
    flush(host)
    # The end of a path is the oldest of it, so that it goes first where files are compared.
    ages = [
        (tmp_path / PRINT.hex() / disk_folder.block_name(m.block.key)).stat().st_mtime_ns
        for m in host.match("", LONG)
    ]
    assert ages == sorted(ages, reverse=True)
    assert min(ages) > 10**18
    assert [b.tokens[0] for b in open_host(tmp_path)._in_store][-1] == LONG[0]


def test_a_count_of_files_is_a_bound_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_cache, "N_BLOCKS_MOST", 3)
    host = kept(tmp_path, *[[i] * 90 for i in range(8)])
    assert host.n_blocks_in_store == len(blocks_in(tmp_path)) == 3


def test_clear_forgets_both_tiers(tmp_path: Path) -> None:
    host = kept(tmp_path, LONG)
    host.clear()
    host.check_integrity()
    flush(host)
    assert (host.n_bytes, store_of(host).n_bytes, blocks_in(tmp_path)) == (0, 0, [])


# -- others in the same folder --------------------------------------------------------------------


def test_two_servers_on_one_folder_never_hand_out_what_is_wrong(tmp_path: Path) -> None:
    rng = random.Random(1)
    hosts = [open_host(tmp_path, memory=3000, capacity=9000) for _ in range(2)]
    known: list[list[int]] = [[]]
    for i in range(60):
        host = hosts[i % 2]
        base = rng.choice(known)
        tokens = base[: rng.randrange(len(base) + 1)] + [rng.randrange(3)] * rng.randrange(1, 200)
        known.append(tokens)
        save(host, "", tokens)
        n_right(hosts[(i + 1) % 2], "", rng.choice(known))
        if i % 10 == 0:
            hosts[rng.randrange(2)] = open_host(tmp_path, memory=3000, capacity=9000)
    for host in hosts:
        flush(host)
        host.check_integrity()


def test_other_models_files_go_before_the_own_ones_oldest_model_first(tmp_path: Path) -> None:
    for mark, age in ((b"a" * 16, 300), (b"b" * 16, 900)):
        host = open_host(tmp_path, mark=mark)
        for i in range(4):
            save(host, "", [i] * 90)
        flush(host)
        for path in blocks_in(tmp_path):
            if path.parent.name == mark.hex():
                os.utime(path, (time.time() - age, time.time() - age))
    n_all = sum(path.stat().st_size for path in blocks_in(tmp_path))
    host = open_host(tmp_path, capacity=n_all)
    for i in range(3):
        save(host, "", [i] * 90)
    flush(host)
    left = [path.parent.name[:2] for path in blocks_in(tmp_path)]
    assert left.count(PRINT.hex()[:2]) == 3
    assert left.count(b"a".hex()) == 4
    assert left.count(b"b".hex()) == 1
    save(host, "", [7] * 90)
    save(host, "", [8] * 90)
    flush(host)
    assert not (tmp_path / (b"b" * 16).hex()).exists()


def test_a_bound_that_is_reached_makes_the_writer_look_again(tmp_path: Path) -> None:
    ours, theirs = open_host(tmp_path, capacity=8000), open_host(tmp_path, capacity=8000)
    for i in range(12):
        save(ours, "", [i] * 90)
        flush(ours)
        save(theirs, "other", [i] * 90)
        flush(theirs)
    size = disk_format.n_header(90) + len(state([1] * 90, 0))
    assert sum(path.stat().st_size for path in blocks_in(tmp_path)) <= 8000 + 2 * size
    assert n_right(theirs, "other", [11] * 90) == 90


def test_files_deleted_under_a_running_server_are_written_again(tmp_path: Path) -> None:
    host = kept(tmp_path, LONG[:250], [1] * 90)
    assert disk_folder.clear(tmp_path) > 0
    assert list(tmp_path.iterdir()) == []
    save(host, "", LONG[:300])  # its beginning is gone from disk: it cannot be kept
    flush(host)
    assert n_right(host, "", LONG) == 300
    save(host, "", LONG)  # but this brings all of it again
    flush(host)
    assert n_right(open_host(tmp_path), "", LONG) == len(LONG)


def test_clear_deletes_nothing_that_is_not_ours(tmp_path: Path) -> None:
    kept(tmp_path, LONG)
    strangers = [
        tmp_path / "file.kv",
        tmp_path / "folder" / f"{'0' * 32}.kv",
        tmp_path / PRINT.hex() / "notes.txt",
    ]
    for path in strangers:
        path.parent.mkdir(exist_ok=True)
        path.write_text("not ours")
    (tmp_path / ("0" * 32)).symlink_to(tmp_path / "folder")
    disk_folder.clear(tmp_path)
    assert all(path.exists() for path in strangers)
    assert list((tmp_path / PRINT.hex()).glob("*.kv")) == []
    assert disk_folder.clear(tmp_path / "no such folder") == 0


# -- everything at once ---------------------------------------------------------------------------


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_whatever_happens_what_is_found_is_right(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    root = tmp_path / str(seed)
    memory, capacity = rng.choice([0, 2000, 9000]), rng.choice([3000, 9000, MIB])
    host = open_host(root, memory, capacity)
    known: list[list[int]] = [[]]
    for _ in range(40):
        base = rng.choice(known)
        new = [rng.randrange(2)] * rng.randrange(1, BLOCK * 2)
        tokens = base[: rng.randrange(len(base) + 1)] + new
        known.append(tokens)
        save(host, rng.choice("ab"), tokens)
        n_right(host, rng.choice("ab"), rng.choice(known))
        match rng.randrange(8):
            case 0:
                flush(host)
                host = open_host(root, memory, capacity)
            case 1:
                spoil(rng, root)
            case 2:
                flush(host)
        host.check_integrity()
        assert store_of(host).n_bytes <= capacity
    flush(host)


def spoil(rng: random.Random, root: Path) -> None:
    """Delete, cut or change a file."""
    paths = blocks_in(root)
    if not paths:
        return
    path = rng.choice(paths)
    try:
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1
        if rng.random() < 0.3:
            path.unlink()
        else:
            path.write_bytes(data[: rng.choice([len(data), len(data) - 3])])
    except FileNotFoundError:
        return  # the writer was faster


# -- the format and the fingerprint ---------------------------------------------------------------


def entry(tokens: list[int], start: int = 0) -> Entry:
    parent = b"p" * 16
    return Entry(block_key(parent, tokens), parent, start, tokens, 5)


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=BLOCK), st.integers(0, 1000))
def test_headers_round_trip(tokens: list[int], index: int) -> None:
    made = entry(tokens, index * BLOCK)
    file = disk_format.pack_header(made, PRINT, memoryview(b"12345")) + b"12345"
    assert len(file) == disk_format.n_file(made)
    assert disk_format.parse_header(file, made.key, PRINT, len(file), 0) == made
    assert bytes(disk_format.parse_file(file, made.key, PRINT)) == b"12345"


@pytest.mark.parametrize(
    ("spoil_it", "why"),
    [
        (lambda f: (f, b"k" * 16, PRINT), "name"),
        (lambda f: (f, entry([1, 2]).key, OTHER_PRINT), "model or build"),
        (lambda f: (b"naiadKV\x02" + f[8:], entry([1, 2]).key, PRINT), "format"),
        (lambda f: (f[:20], entry([1, 2]).key, PRINT), "short"),
        (lambda f: (f[:-1] + b"x", entry([1, 2]).key, PRINT), "state"),
        (lambda f: (f[:60] + b"x" + f[61:], entry([1, 2]).key, PRINT), "wrong"),
    ],
)
def test_damage_is_named(spoil_it: Callable[[bytes], tuple[Any, ...]], why: str) -> None:
    file = disk_format.pack_header(entry([1, 2]), PRINT, memoryview(b"12345")) + b"12345"
    with pytest.raises(Damaged, match=why):
        disk_format.parse_file(*spoil_it(file))


def test_keys_depend_on_everything_before_them() -> None:
    root = root_key(PRINT, "")
    a, b = block_key(root, [1] * BLOCK), block_key(root, [1] * (BLOCK - 1) + [2])
    assert len({a, b, block_key(a, [5]), block_key(b, [5]), block_key(a, [5, 0])}) == 5
    assert root_key(OTHER_PRINT, "") != root


def test_the_fingerprint_is_of_file_build_and_settings(tmp_path: Path) -> None:
    model, library = tmp_path / "m.gguf", tmp_path / "lib.so"
    model.write_bytes(random.Random(1).randbytes(3 * MIB))
    library.write_bytes(b"code")
    prints = [fingerprint(model, [library], {"kv": "f16", "fa": True})]
    assert fingerprint(model, [library], {"fa": True, "kv": "f16"}) == prints[0]
    prints.append(fingerprint(model, [library], {"kv": "q8_0", "fa": True}))
    library.write_bytes(b"c0de")
    prints.append(fingerprint(model, [library], {"kv": "f16", "fa": True}))
    os.utime(model, (1, 1))
    prints.append(fingerprint(model, [library], {"kv": "f16", "fa": True}))
    assert len(set(prints)) == 4
    assert all(len(mark) == disk_format.N_KEY for mark in prints)


@pytest.mark.parametrize("at", [0, MIB - 1, 3 * MIB - 1])
def test_the_sampled_places_of_a_file_matter(tmp_path: Path, at: int) -> None:
    path = tmp_path / "m.gguf"
    data = bytearray(3 * MIB)
    path.write_bytes(data)
    os.utime(path, (1, 1))
    before = file_identity(path)
    data[at] = 1
    path.write_bytes(data)
    os.utime(path, (1, 1))
    assert file_identity(path) != before


def test_all_parts_of_a_model_count(tmp_path: Path) -> None:
    names = [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for name in [*names, "m.gguf", "n-00001-of-00003.gguf", "m-00001-of-00004.gguf"]:
        (tmp_path / name).write_bytes(b"GGUF")
    assert [path.name for path in parts_of(tmp_path / names[0])] == names
    assert parts_of(tmp_path / "m.gguf") == [tmp_path / "m.gguf"]


def test_the_cache_folder_comes_from_setting_environment_or_system(tmp_path: Path) -> None:
    env = {disk_folder.DIR_ENV: str(tmp_path / "env")}
    assert disk_folder.cache_dir("/x/y", env) == Path("/x/y")
    assert disk_folder.cache_dir(None, env) == tmp_path / "env"
    assert disk_folder.cache_dir(None, {}).parts[-2:] == ("naiad", "prefixes")
    assert key_named("0" * 32 + ".kv") == bytes(16)
    assert key_named("0" * 31 + ".kv") is key_named("x.kv") is None


def test_a_flush_that_takes_too_long_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    may_write = threading.Event()
    monkeypatch.setattr(disk_cache, "_write_whole", lambda *_: may_write.wait(PATIENCE_S))
    host = open_host(tmp_path)
    save(host, "", LONG)
    assert not store_of(host).flush(0)
    assert not store_of(host).flush(-1)
    may_write.set()
    flush(host)
