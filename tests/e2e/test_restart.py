"""What was computed outlives the process: killed, stopped or cleared, and never a wrong answer."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from e2e.client import ServerProcess, serving
from naiad.engine.disk_folder import summaries
from naiad.testing.exact_models import N_CHARACTERS, character
from naiad.testing.lookback import lookback_text
from patience import PATIENCE_S

pytestmark = [pytest.mark.engine, pytest.mark.soak]

N_NEW = 24
#: A sequence is on disk a few seconds after its last token; on a busy machine, this many at most.
WRITTEN_WITHIN_S = PATIENCE_S
CANNOT_BE_WRITTEN = "the disk cache cannot be written"


def text(rng: random.Random, n: int) -> str:
    return "".join(character(rng.randrange(N_CHARACTERS)) for _ in range(n))


@dataclass(frozen=True)
class Reply:
    """An answer; tokens of its prompt, those of them that were not computed, tokens of it."""

    text: str
    n_prompt: int
    n_cached: int
    n_new: int

    @property
    def n_kept(self) -> int:
        """Tokens that a cache can hold: the last one is never computed."""
        return self.n_prompt + self.n_new - 1


def ask(server: ServerProcess, prompt: str, n: int = N_NEW) -> Reply:
    body = {"prompt": prompt, "max_tokens": n, "temperature": 0}
    status, reply = server.post("/v1/completions", body)
    assert status == 200, reply
    usage = reply["usage"]
    n_cached = usage["prompt_tokens_details"]["cached_tokens"]
    text = reply["choices"][0]["text"]
    return Reply(text, usage["prompt_tokens"], n_cached, usage["completion_tokens"])


def say(server: ServerProcess, prompt: str, back: int = 40) -> tuple[str, int]:
    """The answer, which must be the only right one, and how many tokens were not computed."""
    reply = ask(server, prompt)
    assert reply.text == lookback_text(prompt, N_NEW, back)
    return reply.text, reply.n_cached


def kill_all(server: ServerProcess) -> None:
    """kill -9 of worker and server: nobody gets to say goodbye."""
    worker = server.worker_pid()
    os.kill(server.pid, signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    server.process.wait(PATIENCE_S)


def n_blocks_on_disk(root: Path) -> int:
    return sum(summary.n_blocks for summary in summaries(root))


def wait_until_written(root: Path, n_blocks: int) -> None:
    """Right after the last answer."""
    end = time.monotonic() + WRITTEN_WITHIN_S
    while n_blocks_on_disk(root) < n_blocks and time.monotonic() < end:
        time.sleep(0.02)  # waits for files; no answer depends on it
    assert n_blocks_on_disk(root) == n_blocks


def wait_until_told(log: Path, words: str) -> None:
    end = time.monotonic() + WRITTEN_WITHIN_S
    while words not in log.read_text() and time.monotonic() < end:
        time.sleep(0.02)  # waits for a line; no answer depends on it
    assert words in log.read_text()


def health_when(server: ServerProcess, is_told: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """What the cache did is told behind the answer: /health once it is, or at last."""
    end = time.monotonic() + WRITTEN_WITHIN_S
    health: dict[str, Any] = server.get("/health")[1]
    while not is_told(health) and time.monotonic() < end:
        health = server.get("/health")[1]
    return health


N_CONVERSATIONS = 20


@pytest.fixture
def prompts() -> list[str]:
    """A beginning that all share, then each its own."""
    rng = random.Random(4)
    shared = text(rng, 300)
    return [shared + text(rng, 60 + 40 * i) for i in range(4)]


@pytest.fixture
def conversations() -> list[str]:
    """Half of them share a beginning."""
    rng = random.Random(5)
    shared = text(rng, 300)
    return [shared * (i % 2) + text(rng, 60 + 20 * i) for i in range(N_CONVERSATIONS)]


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
    arguments: list[str], conversations: list[str], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with serving(tmp_path / "log", *arguments) as server:
        told = first_turns(server, conversations)
        wait_until_written(cache, n_blocks_of(told))
        kill_all(server)
    with serving(tmp_path / "log2", *arguments) as server:
        assert next_turns(server, told) == [len(conversation) for conversation in told]
        health = health_when(server, lambda h: h["cache"]["n_from_disk"] >= n_blocks_of(told))
    assert health["integrity_violations"] == health["waiting_tokens"] == 0
    cache_counts = health["cache"]
    assert (cache_counts["n_lost"], cache_counts["n_from_disk"]) == (0, n_blocks_of(told))


@pytest.mark.model
def test_a_real_model_s_next_turns_after_kill_9_start_from_disk(
    starter: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    arguments = [str(starter), "--ctx", "2048", "--disk-cache-dir", str(cache)]
    beginnings = [
        f"Letter {i}. " + " ".join(f"On day {day} of week {i} it rained." for day in range(5 + i))
        for i in range(N_CONVERSATIONS)
    ]
    with serving(tmp_path / "log", *arguments) as server:
        replies = [ask(server, beginning, 16) for beginning in beginnings]
        wait_until_written(cache, sum(-(-reply.n_kept // 128) for reply in replies))
        kill_all(server)
    with serving(tmp_path / "log2", *arguments) as server:
        for beginning, first in zip(beginnings, replies, strict=True):
            following = ask(server, beginning + first.text + " And then", 4)
            # A text may be split into tokens otherwise than it was made of them, at its end.
            assert first.n_prompt - 1 <= following.n_cached <= first.n_kept
        assert server.get("/health")[1]["integrity_violations"] == 0
    assert "WARNING" not in (tmp_path / "log2").read_text()


def test_a_full_disk_costs_only_what_was_not_written(
    arguments: list[str], prompts: list[str], tmp_path: Path
) -> None:
    """Full from one moment on, and still full after the restart."""
    cache = tmp_path / "cache"
    with serving(tmp_path / "log", *arguments) as server:
        written = first_turns(server, prompts[:2])
        wait_until_written(cache, n_blocks_of(written))
        fill_disk(server)
        unwritten = first_turns(server, prompts[2:])
        # Memory works as ever, and what is on disk stays there for what cannot take its place.
        assert next_turns(server, written) == [len(conversation) for conversation in written]
        assert min(next_turns(server, unwritten)) >= 300
        wait_until_told(tmp_path / "log", CANNOT_BE_WRITTEN)  # nobody tries before a rest
        kill_all(server)
    assert (tmp_path / "log").read_text().count(CANNOT_BE_WRITTEN) == 1
    assert n_blocks_on_disk(cache) == n_blocks_of(written)
    with serving(tmp_path / "log2", *arguments) as server:
        fill_disk(server)
        assert next_turns(server, written) == [len(conversation) for conversation in written]
        assert min(next_turns(server, unwritten)) >= 300
        assert server.get("/health")[1]["integrity_violations"] == 0
    assert list(cache.glob("*/.*.tmp")) == []


def fill_disk(server: ServerProcess) -> None:
    """No file of the worker may grow beyond a few bytes from now on: writing fails, half done."""
    worker = psutil.Process(server.worker_pid())
    worker.rlimit(psutil.RLIMIT_FSIZE, (4096, 4096))


def test_another_models_files_are_not_taken(
    lookback: Path, lookback_400: Path, tmp_path: Path
) -> None:
    """Not beside its own, and not where its own should be."""
    rng, cache = random.Random(6), tmp_path / "cache"
    talks = [text(rng, 500) for _ in range(3)]
    more = ["--ctx", "2048", "--disk-cache-dir", str(cache)]
    with serving(tmp_path / "log", str(lookback), *more) as server:
        told = first_turns(server, talks)
    [theirs] = cache.iterdir()
    with serving(tmp_path / "log2", str(lookback_400), *more) as server:
        assert say(server, told[0], 400)[1] == 0
    [own] = set(cache.iterdir()) - {theirs}
    for file in theirs.glob("*.kv"):
        file.replace(own / file.name)
    with serving(tmp_path / "log3", str(lookback_400), *more) as server:
        assert [say(server, talk, 400)[1] for talk in told[1:]] == [0, 0]
        assert say(server, told[0], 400)[1] == len(told[0])
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
        worker = psutil.Process(server.worker_pid())
        assert server.stop() == 0
        assert not worker.is_running()
    assert n_blocks_on_disk(tmp_path / "cache") == n_blocks_of(told)


def test_a_broken_folder_is_told_and_no_more(
    lookback: Path, prompts: list[str], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    more = ["--disk-cache-dir", str(tmp_path / "cache")]
    with serving(tmp_path / "log", str(lookback), "--ctx", "2048", *more) as server:
        told = first_turns(server, prompts)
        assert min(next_turns(server, told)) > 0  # memory works as ever
    assert (tmp_path / "log").read_text().count(CANNOT_BE_WRITTEN) == 1
