"""Reuse of whole sequences over the real engine, with models that have one right answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from naiad.engine.base import CoreJob
from naiad.engine.executor import DecodeOutcome, Run
from naiad.engine.llama import LlamaBackend
from naiad.testing.exact_models import character
from naiad.testing.lookback import lookback_text
from naiad.testing.recurrent import N_PAIRS, hybrid_text, recurrent_text
from naiad.types import FinishReason
from patience import PATIENCE_S
from test_engine_real import GREEDY, open_backend, settle

pytestmark = pytest.mark.engine

KINDS = ["hybrid", "hybrid apart", "recurrent", "recurrent apart", "lookback apart"]
RIGHT = {"hybrid": hybrid_text, "recurrent": recurrent_text, "lookback": lookback_text}


class Engine:
    """A backend and the only right answer of its model."""

    def __init__(self, backend: LlamaBackend, right: Callable[[str, int], str]) -> None:
        self.backend = backend
        self.core = backend.core
        self.right = right
        self.said: dict[int, bytes] = {}
        self.n_cached: dict[int, int] = {}
        self.finish: dict[int, FinishReason] = {}

    def ids(self, text: str) -> list[int]:
        return self.backend.tokenizer.encode(text, add_special=True, parse_special=True)

    def add(self, uid: int, prompt: str, n: int, namespace: str = "") -> None:
        self.said[uid] = b""
        self.core.add(CoreJob(uid, tuple(self.ids(prompt)), n, GREEDY, namespace))

    def step(self) -> None:
        for item in self.core.step():
            self.said[item.uid] += item.data
            self.n_cached[item.uid] = item.n_cached
            if item.finish:
                self.finish[item.uid] = item.finish

    def run(self) -> None:
        while self.core.has_work():
            self.step()

    def check(self, uid: int, prompt: str, n: int, namespace: str = "") -> int:
        """One exact answer. Returns how much of its prompt was not computed."""
        self.add(uid, prompt, n, namespace)
        self.run()
        assert self.said[uid].decode() == self.right(prompt, n)
        return self.n_cached[uid]

    def close(self) -> None:
        self.core.close()
        self.backend.model.close()


def count_tokens(engine: Engine) -> list[int]:
    """Counts the tokens that are computed from now on."""
    counted = [0]
    executor = engine.core._executor
    decode = executor.decode

    def count(runs: list[Run]) -> DecodeOutcome:
        counted[0] += sum(len(run.tokens) for run in runs)
        return decode(runs)

    executor.decode = count  # type: ignore[method-assign]
    return counted


def text(seed: int, n: int) -> str:
    rng = random.Random(seed)
    return "".join(character(rng.randrange(N_PAIRS)) for _ in range(n))


@contextmanager
def opened(kind: str, models: dict[str, Path], **changes: object) -> Iterator[Engine]:
    name = kind.removesuffix(" apart")
    profile = "throughput" if kind.endswith("apart") else "default"
    backend = open_backend(models[name], profile=profile, **changes)
    assert backend.info.engine.kv_unified == (profile == "default")
    with closing(Engine(backend, RIGHT[name])) as engine:
        yield engine


@pytest.fixture(scope="module")
def models(hybrid: Path, recurrent: Path, lookback: Path) -> dict[str, Path]:
    return {"hybrid": hybrid, "recurrent": recurrent, "lookback": lookback}


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest, models: dict[str, Path]) -> Iterator[Engine]:
    with opened(request.param, models) as engine:
        yield engine


def test_a_conversation_does_not_compute_its_history_again(engine: Engine) -> None:
    talk = text(1, 200)
    for turn in range(4):
        n_known = len(engine.ids(talk))
        talk += text(10 + turn, 30)
        n_cached = engine.check(turn, talk, 50)
        talk += engine.right(talk, 50)
        if turn:
            assert n_cached >= n_known - 1
        if turn % 2:
            settle(engine.backend)


def test_other_conversations_in_between_change_nothing(engine: Engine) -> None:
    talks = {i: text(20 + i, 150 + 40 * i) for i in range(7)}
    for turn in range(3):
        for i, talk in talks.items():
            engine.add(10 * turn + i, talk, 30)
        engine.run()
        for i, talk in talks.items():
            uid = 10 * turn + i
            answer = engine.right(talk, 30)
            assert engine.said[uid].decode() == answer
            assert turn == 0 or engine.n_cached[uid] >= len(engine.ids(talk)) - 12
            talks[i] = talk + answer + text(100 + uid, 10)
        settle(engine.backend)


def test_the_same_prompt_again_and_branches(engine: Engine) -> None:
    talk = text(2, 300)
    engine.check(1, talk, 20)
    settle(engine.backend)
    assert engine.check(2, talk, 40) == len(engine.ids(talk)) - 1
    answer = engine.right(talk, 20)
    for uid, tail in enumerate((text(3, 25), text(4, 70), answer[:5] + text(5, 9)), start=10):
        assert engine.check(uid, talk + tail, 60) >= len(engine.ids(talk)) - 1


def test_namespaces_see_nothing_of_each_other(engine: Engine) -> None:
    talk = text(6, 200)
    engine.check(1, talk, 10, "one")
    settle(engine.backend)
    assert engine.check(2, talk, 10, "two") == 0
    assert engine.check(3, talk, 10, "one") > 0


def test_one_that_is_gone_in_the_middle_does_no_harm(engine: Engine) -> None:
    first, second = text(7, 900), text(8, 900)
    engine.add(1, first, 80)
    engine.add(2, second, 80)
    for _ in range(6):
        engine.step()
    engine.core.abort(1)
    engine.run()
    assert engine.said[2].decode() == engine.right(second, 80)
    settle(engine.backend)
    engine.check(3, first, 60)
    engine.check(4, second + engine.right(second, 80) + text(9, 5), 60)


def test_what_an_interrupted_decode_leaves_is_not_used(engine: Engine) -> None:
    executor = engine.core._executor
    decode = executor.decode

    def interrupted(runs: list[Run]) -> DecodeOutcome:
        engine.core.cancel_hint(1)
        return decode(runs)

    talk = text(18, 1000)
    engine.add(1, talk, 5)
    engine.step()
    executor.decode = interrupted  # type: ignore[method-assign]
    engine.step()
    executor.decode = decode  # type: ignore[method-assign]
    engine.core.abort(1)
    engine.run()
    settle(engine.backend)
    for uid, n in enumerate((600, 999), start=2):
        engine.check(uid, talk[:n] + text(40 + uid, 20), 60)
    engine.check(4, talk + text(50, 20), 60)


@pytest.mark.parametrize("kind", ["hybrid", "recurrent"])
def test_a_long_prompts_beginning_serves_another(kind: str, models: dict[str, Path]) -> None:
    with opened(kind, models) as engine:
        base = text(9, 1100)
        engine.check(1, base + text(10, 50), 5)
        assert engine.check(2, base + text(11, 50), 30) >= 512


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_said_before_a_restart_comes_from_disk(kind: str, models: dict[str, Path]) -> None:
    talk = text(12, 250)
    with opened(kind, models) as engine:
        engine.check(1, talk, 40)
        settle(engine.backend)
        assert engine.backend.flush(PATIENCE_S)
    n_known = len(talk) + 40
    with opened(kind, models) as engine:
        prompt = talk + engine.right(talk, 40) + text(13, 20)
        assert engine.check(1, prompt, 60) >= n_known - 1
        engine.check(2, talk + text(14, 20), 20)


@pytest.mark.parametrize("kind", ["hybrid", "recurrent"])
def test_a_sequence_that_was_put_back_goes_on_from_its_state(
    kind: str, models: dict[str, Path]
) -> None:
    with opened(kind, models) as engine:
        prompts = {uid: text(30 + uid, 200) for uid in range(3)}
        for uid, prompt in prompts.items():
            engine.add(uid, prompt, 70)
        for _ in range(12):
            engine.step()
        engine.core._put_back(engine.core._running[1])
        n_computed = count_tokens(engine)
        engine.run()
        for uid, prompt in prompts.items():
            assert engine.said[uid].decode() == engine.right(prompt, 70)
        assert n_computed[0] < 3 * 70, "a history was computed again"


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_stale_checkpoint_shows(kind: str, models: dict[str, Path]) -> None:
    """Negative control: a state that stands for other tokens than it is kept under."""
    with opened(kind, models, disk_cache=False) as engine:
        right, wrong = text(15, 200), text(16, 200)
        engine.check(1, wrong, 1)
        settle(engine.backend)
        cache = engine.core._prefix
        for parked in list(cache.parked):
            cache.drop(parked)
        host, ids = cache.host, engine.ids(right)
        for checkpoint in list(host._used):
            state, n = checkpoint.state, checkpoint.n_tokens
            host.add("", ids[:n], state, checkpoint.n_bytes, lasts=False)
        prompt = right + text(17, 30)
        engine.add(2, prompt, 50)
        engine.run()
        assert engine.n_cached[2] > 150
        assert engine.said[2].decode() != engine.right(prompt, 50)
