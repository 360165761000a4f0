"""The helper's conversation with its parent, without a process."""

from __future__ import annotations

import io

import msgspec
import pytest

from naiad.chat.helper import answer, serve
from naiad.chat.messages import HEADER_BYTES, Job, Reply, body_size, pack, unpack

TURNS = [{"role": "user", "content": "你好 😀"}]


def replies(data: bytes) -> list[Reply]:
    found, source = [], io.BytesIO(data)
    while header := source.read(HEADER_BYTES):
        found.append(unpack(source.read(body_size(header)), Reply))
    return found


def test_greets_then_answers_each_job_until_the_source_ends() -> None:
    jobs = [Job("{{ messages[0].content }}", TURNS), Job("{{ bos_token }}", [], bos="<s>")]
    sink = io.BytesIO()
    serve(io.BytesIO(b"".join(map(pack, jobs))), sink)
    assert replies(sink.getvalue()) == [Reply(), Reply(text="你好 😀"), Reply(text="<s>")]


def test_errors_are_replies_with_a_code() -> None:
    reply = answer(Job("{{ raise_exception('no system role') }}", TURNS))
    assert (reply.code, reply.param) == ("invalid_request", "messages")
    assert "no system role" in reply.message
    assert answer(Job("{% if %}", TURNS)).code == "unsupported"


def test_memory_errors_are_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> str:
        raise MemoryError

    monkeypatch.setattr("naiad.chat.template.render", fail)
    assert "too much memory" in answer(Job("", [])).message


def test_unforeseen_errors_name_their_kind_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> str:
        raise OSError("secret")

    monkeypatch.setattr("naiad.chat.template.render", fail)
    reply = answer(Job("", []))
    assert (reply.code, reply.message) == ("internal_error", "Chat template helper: OSError.")


def test_text_that_is_no_unicode_is_refused() -> None:
    assert "no Unicode" in answer(Job(r"{{ '\ud800' }}", [])).message


def test_frames_over_the_limit_are_refused() -> None:
    with pytest.raises(ValueError, match="over the limit"):
        body_size(b"\xff\xff\xff\xff")


def test_a_body_of_another_shape_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        unpack(b'{"template": 1}', Job)
