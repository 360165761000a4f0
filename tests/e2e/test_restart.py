"""What was computed outlives the process: killed, stopped or cleared, and never a wrong answer."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from e2e.client import ServerProcess, serving
from naiad.engine.disk_folder import summaries
from naiad.testing.exact_models import N_CHARACTERS, character
from naiad.testing.lookback import lookback_text

pytestmark = [pytest.mark.engine, pytest.mark.soak]

N_NEW = 24
#: Within this time after its last token, a sequence must be on disk.
WRITTEN_WITHIN_S = 5.0


def text(rng: random.Random, n: int) -> str:
    return "".join(character(rng.randrange(N_CHARACTERS)) for _ in range(n))


def say(server: ServerProcess, prompt: str) -> tuple[str, int]:
    """The answer, which must be the only right one, and how many tokens were not computed."""
    body = {"prompt": prompt, "max_tokens": N_NEW, "temperature": 0}
    status, reply = server.post("/v1/completions", body)
    assert status == 200, reply
    answer = reply["choices"][0]["text"]
    assert answer == lookback_text(prompt, N_NEW)
    return answer, reply["usage"]["prompt_tokens_details"]["cached_tokens"]


def kill_all(server: ServerProcess) -> None:
    """kill -9 of worker and server: nobody gets to say goodbye."""
    worker = server.worker_pid()
    os.kill(server.pid, signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    server.process.wait(30)


def n_blocks_on_disk(root: Path) -> int:
    return sum(summary.n_blocks for summary in summaries(root))


def wait_until_written(root: Path, n_blocks: int) -> None:
    end = time.monotonic() + WRITTEN_WITHIN_S
    while n_blocks_on_disk(root) < n_blocks and time.monotonic() < end:
        time.sleep(0.02)  # waits for files; no answer depends on it
    assert n_blocks_on_disk(root) == n_blocks


@pytest.fixture
def prompts() -> list[str]:
    """A beginning that all share, then each its own."""
    rng = random.Random(4)
    shared = text(rng, 300)
    return [shared + text(rng, 60 + 40 * i) for i in range(4)]


@pytest.fixture
def arguments(lookback: Path, tmp_path: Path) -> Iterator[list[str]]:
    cache = str(tmp_path / "cache")
    yield [str(lookback), "--ctx", "2048", "--parallel", "4", "--disk-cache-dir", cache]


def first_turns(server: ServerProcess, prompts: list[str]) -> list[str]:
    return [prompt + say(server, prompt)[0] for prompt in prompts]


def next_turns(server: ServerProcess, told: list[str]) -> list[int]:
    """How many tokens of each conversation so far were not computed anew."""
    return [say(server, conversation + text(random.Random(9), 30))[1] for conversation in told]


def n_blocks_of(told: list[str]) -> int:
    """Blocks of 128 that hold these, each once; BOS is before, and the last is never computed."""
    computed = ["^" + conversation[:-1] for conversation in told]
    return len({tokens[: at + 128] for tokens in computed for at in range(0, len(tokens), 128)})


def test_the_next_turn_after_kill_9_starts_from_disk(
    arguments: list[str], prompts: list[str], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    server = ServerProcess(arguments, tmp_path / "log")
    server.wait_ready()
    told = first_turns(server, prompts)
    wait_until_written(cache, n_blocks_of(told))
    kill_all(server)
    with serving(tmp_path / "log2", *arguments) as server:
        assert next_turns(server, told) == [len(conversation) for conversation in told]
        assert server.get("/health")[1]["integrity_violations"] == 0


def test_damaged_and_foreign_files_are_no_error(
    arguments: list[str], prompts: list[str], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with serving(tmp_path / "log", *arguments) as server:
        told = first_turns(server, prompts)
    [folder] = [path for path in cache.iterdir() if path.is_dir()]
    rng = random.Random(1)
    for path in folder.glob("*.kv"):
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data[: rng.choice([len(data), len(data) // 2])])
    (folder / f"{'5' * 32}.kv").write_bytes(rng.randbytes(5000))
    with serving(tmp_path / "log2", *arguments) as server:
        assert next_turns(server, told)[0] == 0


def test_another_attention_or_no_cache_reads_nothing(
    arguments: list[str], prompts: list[str], tmp_path: Path
) -> None:
    with serving(tmp_path / "log", *arguments) as server:
        [told] = first_turns(server, prompts[:1])
    for more in (["--no-flash-attention"], ["--no-disk-cache"], ["--disk-cache-mib", "0"]):
        with serving(tmp_path / "log2", *arguments, *more) as server:
            assert next_turns(server, [told]) == [0]
    with serving(tmp_path / "log3", *arguments) as server:
        assert next_turns(server, [told]) == [len(told)]


def test_a_polite_end_saves_what_is_not_on_disk_yet(
    arguments: list[str], prompts: list[str], tmp_path: Path
) -> None:
    """SIGTERM at once after the last token: nothing was idle yet, and yet all of it is kept."""
    with serving(tmp_path / "log", *arguments) as server:
        told = first_turns(server, prompts)
        worker = server.worker_pid()
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 10
        assert not psutil.pid_exists(worker)
    assert n_blocks_on_disk(tmp_path / "cache") == n_blocks_of(told)


def test_a_broken_folder_is_told_and_no_more(
    lookback: Path, prompts: list[str], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    more = ["--disk-cache-dir", str(tmp_path / "cache")]
    with serving(tmp_path / "log", str(lookback), "--ctx", "2048", *more) as server:
        told = first_turns(server, prompts)
        assert min(next_turns(server, told)) > 0  # memory works as ever
    assert (tmp_path / "log").read_text().count("the disk cache cannot be written") == 1
