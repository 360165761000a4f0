"""The scripted engine by itself: its vocabulary, its checks, its core and its verbs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import script
from naiad.config import EngineConfig
from naiad.engine.base import CoreJob, EngineBackend
from naiad.errors import ContextExceeded, InvalidRequest, ModelFileError
from naiad.ipc.messages import StreamItem
from naiad.testing.scripted import (
    RATE_VARIABLE,
    ScriptedBackend,
    ScriptedCore,
    encode,
    expected_text,
    expected_tokens,
    load,
    natural_length,
)
from naiad.testing.words import BYTES, EOS, N_VOCAB, N_WORDS, decode_token, word_id
from naiad.types import FinishReason, SamplingParams

CONFIG = EngineConfig(engine="scripted", parallel=2, ctx=100)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RATE_VARIABLE, "0")


def test_an_empty_rate_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RATE_VARIABLE, "")
    assert load(CONFIG)(lambda progress: None).info.name == "scripted"


def job(uid: int, prompt: str, max_tokens: int = 50, *, ignore_eos: bool = True) -> CoreJob:
    return CoreJob(uid, tuple(encode(prompt)), max_tokens, SamplingParams(ignore_eos=ignore_eos))


def run(core: ScriptedCore) -> dict[int, list[StreamItem]]:
    """Step until there is nothing to do; what each stream got."""
    found: dict[int, list[StreamItem]] = {}
    while core.has_work():
        for item in core.step():
            found.setdefault(item.uid, []).append(item)
    return found


def text(items: list[StreamItem]) -> str:
    return b"".join(item.data for item in items).decode()


class TestVocabulary:
    def test_no_two_words_are_spelled_alike(self) -> None:
        words = {decode_token(word_id(number)) for number in range(N_WORDS)}
        assert len(words) == N_WORDS
        assert all(word.startswith(b" ") and word.count(b" ") == 1 for word in words)

    def test_bytes_and_the_end(self) -> None:
        assert [decode_token(n) for n in (0, 65, 255)] == [b"\0", b"A", b"\xff"]
        assert (decode_token(EOS), decode_token(EOS, special=True)) == (b"", b"<|end|>")

    @given(st.text(max_size=50))
    def test_text_comes_back(self, given_text: str) -> None:
        tokenizer = ScriptedBackend(CONFIG).tokenizer
        ids = tokenizer.encode(given_text, add_special=True, parse_special=True)
        assert tokenizer.decode(ids, special=False).decode() == given_text

    @pytest.mark.parametrize("bad", [-1, N_VOCAB])
    def test_ids_outside_it(self, bad: int) -> None:
        with pytest.raises(InvalidRequest, match=str(N_VOCAB - 1)):
            ScriptedBackend(CONFIG).tokenizer.decode([1, bad], special=True)


class TestWatermark:
    @given(st.text(max_size=20), st.text(max_size=20), st.integers(1, 20))
    def test_every_prompt_has_its_own(self, a: str, b: str, n: int) -> None:
        assert expected_tokens(a, n) == expected_tokens(a, n + 5)[:n]
        assert a == b or expected_tokens(a, 8) != expected_tokens(b, 8)

    def test_it_reads_like_words(self) -> None:
        words = expected_text("hello", 50).split()
        assert len(words) == 50
        assert all(word.isalpha() and 4 <= len(word) <= 6 for word in words)

    @given(st.text())
    def test_lengths(self, prompt: str) -> None:
        assert 20 <= natural_length(prompt) <= 200

    def test_ids_and_text_are_one_prompt(self) -> None:
        assert expected_text(encode("ü"), 5) == expected_text("ü", 5)


class TestChecks:
    def test_the_context(self) -> None:
        backend = ScriptedBackend(CONFIG)
        assert backend.check([1] * 99, None) == 1
        assert backend.check([1] * 90, 1000) == 10
        assert backend.check([1] * 90, 3) == 3
        with pytest.raises(ContextExceeded) as caught:
            backend.check([1] * 100, 1)
        assert caught.value.details == {"n_prompt_tokens": 100, "n_ctx": 100}

    @pytest.mark.parametrize("max_tokens", [0, -5])
    def test_max_tokens(self, max_tokens: int) -> None:
        with pytest.raises(InvalidRequest, match="at least 1"):
            ScriptedBackend(CONFIG).check([1], max_tokens)

    @pytest.mark.parametrize(
        "prompt",
        ['{"script"', '{"script": 5}', '{"script": [[]]}', script(["sing"]), '{"script"] "x"'],
    )
    def test_scripts_that_cannot_be_acted_out(self, prompt: str) -> None:
        with pytest.raises(InvalidRequest, match="script"):
            ScriptedBackend(CONFIG).check(encode(prompt), 5)

    def test_a_tool_with_a_parameter_of_that_name_is_no_script(self) -> None:
        described = '{"type": "object", "properties": {"script": {"type": "string"}}}'
        assert ScriptedBackend(CONFIG).check(encode(described), 5) == 5

    def test_what_it_says_of_itself(self) -> None:
        info = ScriptedBackend(CONFIG).info
        assert (info.name, info.n_vocab, info.engine.n_ctx, info.engine.parallel) == (
            "scripted", N_VOCAB, 100, 2,
        )  # fmt: skip


class TestCore:
    def test_streams_side_by_side(self) -> None:
        core = ScriptedCore(2, 0)
        for uid in range(5):
            core.add(job(uid, f"prompt {uid}", 4 + uid))
        for uid, items in run(core).items():
            assert text(items) == expected_text(f"prompt {uid}", 4 + uid)
            assert [item.seq for item in items] == list(range(4 + uid))
            assert [item.finish for item in items][-1] is FinishReason.LENGTH

    def test_no_more_than_parallel_at_once(self) -> None:
        core = ScriptedCore(2, 0)
        for uid in range(5):
            core.add(job(uid, "p", 3))
        assert [len(core.step()) for _ in range(3)] == [2, 2, 2]
        assert {item.uid for item in core.step()} == {2, 3}

    def test_its_own_end(self) -> None:
        core = ScriptedCore(1, 0)
        core.add(job(1, "p", 500, ignore_eos=False))
        items = run(core)[1]
        assert len(items) == natural_length("p") + 1
        assert items[-1] == StreamItem(1, len(items) - 1, [EOS], b"", FinishReason.STOP)

    def test_abort_while_waiting_and_while_running(self) -> None:
        core = ScriptedCore(1, 0)
        core.add(job(1, "p"))
        core.add(job(2, "q"))
        core.step()
        for uid in (2, 1, 99):
            core.abort(uid)
        found = run(core)
        assert found[1] == [StreamItem(1, 1, [], b"", FinishReason.CANCELLED)]
        assert found[2] == [StreamItem(2, 0, [], b"", FinishReason.CANCELLED)]
        assert set(found) == {1, 2}

    def test_the_rate_is_each_streams_own(self) -> None:
        core = ScriptedCore(4, 0.001)
        core.add(job(1, "p", 2))
        assert core.next_due() is None
        assert len(core.step()) == 1
        due = core.next_due()
        assert due is not None
        assert core.step() == []
        core.add(job(2, "q", 1))
        assert core.next_due() is None
        assert [item.uid for item in core.step()] == [2]
        assert core.next_due() == due
        core.abort(1)
        assert [item.finish for item in core.step()] == [FinishReason.CANCELLED]
        assert not core.has_work()
        core.close()


class TestVerbs:
    def play(self, *verbs: list[Any], max_tokens: int = 50) -> list[StreamItem]:
        core = ScriptedCore(1, 0)
        core.add(job(1, script(*verbs), max_tokens))
        return run(core)[1]

    def test_emit_and_end(self) -> None:
        items = self.play(["emit", 2], ["emit", 1])
        prompt = script(["emit", 2], ["emit", 1])
        assert text(items) == expected_text(prompt, 3)
        assert items[-1].finish is FinishReason.STOP

    def test_max_tokens_cuts_a_script(self) -> None:
        items = self.play(["emit", 20], max_tokens=4)
        assert [len(items), items[-1].finish] == [4, FinishReason.LENGTH]

    @pytest.mark.parametrize(
        ("verb", "data"),
        [
            (["invalid_utf8"], b"\xff"),
            (["half_emoji"], b"\xf0\x9f"),
            (["bytes", "e6bca2"], "漢".encode()),
        ],
        ids=["invalid", "half", "bytes"],
    )
    def test_bytes_come_one_by_one(self, verb: list[Any], data: bytes) -> None:
        *items, end = self.play(verb)
        assert [item.data for item in items] == [bytes([byte]) for byte in data]
        assert all(token < BYTES for item in items for token in item.tokens)
        assert end.finish is FinishReason.STOP

    def test_errors(self) -> None:
        for verb, word in (("finish_error", "scripted"), ("nan", "NaN")):
            item = self.play([verb])[-1]
            assert item.finish is FinishReason.ERROR
            assert item.error is not None
            assert word in item.error[1]

    def test_numbers_that_are_wrong(self) -> None:
        assert [item.seq for item in self.play(["emit", 2], ["dup_seq"])] == [0, 1, 1, 2]
        assert [item.seq for item in self.play(["emit", 2], ["skip_seq"])] == [0, 1, 3, 4]

    def test_babble(self) -> None:
        core = ScriptedCore(1, 0)
        core.add(job(1, script(["babble_after_cancel", 2], ["emit", 9])))
        core.step()
        core.abort(1)
        finishes = [item.finish for item in run(core)[1]]
        assert finishes == [None, None, FinishReason.CANCELLED]

    def test_a_pause_lets_time_pass(self) -> None:
        core = ScriptedCore(1, 1.0)
        core.add(job(1, script(["pause", 99], ["emit", 1])))
        assert core.step() == []
        due = core.next_due()
        assert due is not None
        assert core.has_work()

    def test_raw_verbs_need_a_channel(self) -> None:
        with pytest.raises(RuntimeError, match="channel"):
            self.play(["garbage"])

    def test_death_needs_the_main_thread_to_be_a_worker(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        killed: list[tuple[int, int]] = []
        monkeypatch.setattr("os.kill", lambda pid, number: killed.append((pid, number)))
        with pytest.raises(RuntimeError, match="signal 11"):
            self.play(["die", 11])
        assert [number for _, number in killed] == [11]


class TestLoad:
    def load(self, config: EngineConfig) -> tuple[EngineBackend, list[float]]:
        found: list[float] = []
        progress: Callable[[float], None] = found.append
        return load(config)(progress), found

    def test_plain(self) -> None:
        backend, progress = self.load(CONFIG)
        assert backend.info.name == "scripted"
        assert progress == [1.0]

    def test_a_failure_keeps_its_code(self) -> None:
        config = EngineConfig(engine="scripted", model=script(["fail", "model_file", "bad"]))
        with pytest.raises(ModelFileError, match="bad"):
            self.load(config)

    def test_only_with_the_fast_path(self) -> None:
        verb = ["fail_unless_safe", "engine_selftest", "NaN"]
        config = EngineConfig(engine="scripted", model=script(verb), extra_buffers=False)
        assert not self.load(config)[0].info.engine.extra_buffers

    def test_unknown_verbs(self) -> None:
        with pytest.raises(InvalidRequest, match="cannot sing"):
            self.load(EngineConfig(engine="scripted", model=script(["sing"])))
