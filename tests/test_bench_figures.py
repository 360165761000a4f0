"""From timed bytes to figures: cut anywhere, counted right, nothing made up."""

from __future__ import annotations

import pytest

from naiad.bench.figures import (
    gaps_between,
    handovers,
    percentile,
    running_at,
    spread,
    summarize,
)
from naiad.bench.results import (
    Outcome,
    Recording,
    StreamResult,
    lumped_streams,
    read_recording,
    split_lines,
    stale_streams,
)
from naiad.bench.wire import DIALECTS

OPENAI, KOBOLD = DIALECTS["openai"], DIALECTS["kobold"]
HI = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n'
LENGTH = b'data: {"choices":[{"delta":{},"finish_reason":"length"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":3}}\n\n'
DONE = b"data: [DONE]\n\n"


def recording(*chunks: bytes, status: int = 200, outcome: Outcome = Outcome.COMPLETE) -> Recording:
    """Started at 10, a chunk each second from 11 on, ended half a second after the last."""
    timed = tuple((11.0 + i, chunk) for i, chunk in enumerate(chunks))
    return Recording(10.0, 10.5 + len(chunks), outcome, status, timed)


def result(
    *times: float, text: str = "x", n_tokens: int = 0, error: str | None = None
) -> StreamResult:
    end = times[-1] if times else 0.0
    texts = (text,) * bool(text) + ("",) * (len(times) - 1)
    return StreamResult(0.0, end + 0.5, times, texts, n_tokens or len(times), error=error)


def test_a_whole_stream_is_read() -> None:
    got = read_recording(recording(HI, HI, HI, LENGTH, USAGE, DONE), OPENAI, 3)
    assert (got.text, got.event_texts) == ("hihihi", ("hi", "hi", "hi"))
    assert (got.event_times, got.n_tokens, got.n_prompt) == ((11, 12, 13), 3, 5)
    assert (got.finish, got.n_finishes, got.error) == ("length", 1, None)
    assert (got.ttft, got.gaps, got.tail) == (1.0, (1.0, 1.0), 3.5)


@pytest.mark.parametrize("size", [1, 2, 7, 30, 1000])
def test_the_text_is_the_same_however_the_bytes_are_cut(size: int) -> None:
    whole = HI + 'data: {"choices":[{"text":"é字"}]}\r\n\r\n'.encode() + LENGTH + DONE
    parts = [whole[i : i + size] for i in range(0, len(whole), size)]
    got = read_recording(recording(*parts), OPENAI, 9)
    assert (got.text, got.n_finishes, got.error) == ("hié字", 1, None)


def test_a_line_has_the_time_of_the_chunk_that_completes_it() -> None:
    chunks = [(1.0, b"data: a"), (2.0, b"\ndata: b\nda"), (3.0, b"ta: c")]
    assert split_lines(chunks) == [(2.0, b"data: a"), (2.0, b"data: b"), (3.0, b"data: c")]
    assert split_lines([]) == []


def test_tokens_are_counted_by_the_best_source_there_is() -> None:
    assert read_recording(recording(HI, LENGTH, USAGE), OPENAI, 9).n_tokens == 3
    assert read_recording(recording(HI, LENGTH), OPENAI, 9).n_tokens == 9
    stop = LENGTH.replace(b"length", b"stop")
    assert read_recording(recording(HI, HI, stop), OPENAI, 9).n_tokens == 2
    assert read_recording(recording(LENGTH), OPENAI, 9).n_tokens == 0


@pytest.mark.parametrize(
    ("got", "error"),
    [
        (recording(HI, DONE), "0 finish reasons in one stream"),
        (recording(HI, LENGTH, LENGTH), "2 finish reasons in one stream"),
        (recording(LENGTH), "no text"),
        (recording(HI, b'data: {"error":{"message":"died"}}\n\n'), "died"),
        (recording(HI, outcome=Outcome.CUT), "cut"),
        (recording(HI, outcome=Outcome.TIMEOUT), "timeout"),
        (recording(b'{"error":{"message":"full"}}', status=503), "HTTP 503: full"),
        (recording(HI, outcome=Outcome.DROPPED), None),
    ],
)
def test_failures_are_told_apart(got: Recording, error: str | None) -> None:
    read = read_recording(got, OPENAI, 1)
    assert read.error == error
    assert read.is_failed == (error is not None)


def test_old_kobold_streams_end_without_a_reason() -> None:
    assert read_recording(recording(b'data: {"token":"hi"}\n\n'), KOBOLD, 1).error is None


def test_nothing_said_has_no_times() -> None:
    empty = read_recording(recording(), OPENAI, 1)
    assert (empty.ttft, empty.tail, empty.gaps) == (None, None, ())


def test_percentiles_interpolate() -> None:
    assert percentile([3, 1, 2], 50) == 2
    assert percentile([1, 2], 50) == 1.5
    assert percentile([0, 100], 99) == 99
    assert (percentile([7], 0), percentile([7], 100)) == (7, 7)


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_percentiles_need_values_and_a_percent(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="percentile needs"):
        percentile(values, percent)


def test_spread_is_in_milliseconds_and_skips_what_is_not_there() -> None:
    got = spread([0.001, None, 0.003])
    assert got is not None
    assert (got.n, got.p50, got.p99, got.max) == (2, 2.0, 2.98, 3.0)
    assert spread([None]) is None


def test_a_summary_counts_everything_once() -> None:
    lines = [result(1.0, 2.0, 4.0), result(2.0, error="died"), result()]
    got = summarize("x", lines, extra={"y": 1.0})
    assert (got.streams, got.failed, got.tokens, got.errors) == (3, 1, 4, ("died",))
    assert (got.wall_s, got.tokens_per_s) == (4.5, 0.89)
    for times in (got.ttft, got.gap):
        assert times is not None
        assert (times.n, times.p50, times.p99, times.max) == (2, 1500.0, 1990.0, 2000.0)
    assert (got.wrong, got.lumped, got.extra) == (0, 0, {"y": 1.0})


def test_a_summary_of_nothing_said_has_no_spreads() -> None:
    got = summarize("x", [result(error="refused")])
    assert (got.ttft, got.gap, got.tail, got.failed) == (None, None, None, 1)


def test_another_requests_marker_is_a_stale_answer() -> None:
    markers = ["zebra100", "otter101", "falcon102"]
    texts = ["Zebra100 zebra100", "zebra100", "otter101 falcon102"]
    assert stale_streams([result(1.0, text=t) for t in texts], markers) == 1


def test_the_previous_answer_in_one_event_is_stale() -> None:
    first = result(1.0, 2.0, 3.0, text="Sure, here")
    markers = ["zebra100", "otter101"]
    assert stale_streams([first, result(4.0, text="Sure, here", n_tokens=3)], markers) == 1
    assert stale_streams([first, result(4.0, 5.0, 6.0, text="Sure, here")], markers) == 0


def test_failed_and_empty_streams_are_not_called_stale() -> None:
    lines = [result(text=""), result(1.0, text="zebra100", error="died")]
    assert stale_streams(lines, ["zebra100", "otter101"]) == 0


def test_answers_in_one_event_are_lumped() -> None:
    assert lumped_streams([result(1.0, n_tokens=4), result(1.0, n_tokens=3), result(1.0, 2.0)]) == 1


def test_handovers_reach_from_last_text_to_next_first_text() -> None:
    assert handovers([result(1.0, 2.0), result(), result(5.0, 6.0), result(7.0)]) == [3.0, 1.0]


def test_gaps_that_touch_a_window_count() -> None:
    streams = [result(1.0, 2.0, 6.0, 7.0), result(3.0, 3.5)]
    assert gaps_between(streams, 3.0, 5.0) == [4.0, 0.5]
    assert gaps_between(streams, 8.0, 9.0) == []


def test_running_streams_have_text_before_and_after() -> None:
    assert running_at([result(1.0, 5.0), result(4.0, 5.0), result()], 3.0) == 1
