"""What the benchmark scripts make of what they measured: which ratio, of which two figures."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from naiad.bench.figures import Summary, summarize
from naiad.bench.results import StreamResult

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts import each other by their bare names."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def script(name: str) -> Any:
    return import_module(name)


def line(name: str, ttft: float, **extra: float) -> Summary:
    """One stream with this time to first token, seconds."""
    result = StreamResult(0.0, ttft + 1, (ttft, ttft + 0.5), ("a", "b"), 2)
    return summarize(name, [result], extra=dict(extra))


def values(figures: Sequence[Any]) -> dict[str, float]:
    return {figure.name: round(figure.value, 4) for figure in figures}


def verdicts(figures: Sequence[Any]) -> list[str]:
    return [figure.verdict for figure in figures if figure.verdict]


def test_speed_of_many_streams_is_over_the_other_servers() -> None:
    streams = script("p5_streams")
    best = streams.Rates()
    for tries in ((80, 100, 70, "apart"), (90, 90, 95, "one pool")):
        best.add(*tries)
    assert best.variant == "apart"
    ratio, limit, *rates = streams.figures_of("default", 16, best)
    assert (ratio.value, ratio.bar, ratio.verdict) == (0.9, 0.8, "holds")
    assert (limit.value, [rate.value for rate in rates]) == (0.95, [90, 100, 95])
    assert streams.figures_of("throughput", 16, best)[0].verdict == "FALLS SHORT"


@pytest.mark.parametrize(
    ("n_prompt", "share", "n"), [(140, 0.25, 105), (140, None, 140), (None, None, 9)]
)
def test_the_bare_engine_computes_of_a_prompt_what_the_server_did(
    n_prompt: int | None, share: float | None, n: int
) -> None:
    said = StreamResult(0.0, 1.0, (0.5,), ("a",), 1, n_prompt)
    one = summarize("concurrent", [said], extra={"cached_share": share})
    assert script("p5_streams").n_computed(one, n_asked=9) == n


def test_totals_of_a_shared_prefix_are_over_the_bare_engine_and_the_other_server() -> None:
    of = script("p6_p7_shared").figures_of
    ours, bare, theirs = ({"cold": c, "warm": w} for c, w in ((4, 1), (4, 2), (40, 10)))
    figures = of(ours, bare, theirs)
    assert [figure.value for figure in figures[:4]] == [1.0, 0.1, 0.5, 0.1]
    assert verdicts(figures) == ["aim"] * 4
    assert len(of(ours, bare, {})) == 6


def test_the_shared_prefix_takes_the_best_total_of_the_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = script("p6_p7_shared")
    rounds = iter([[1.0, 1.0], [3.0, 2.0], [2.0, 4.0]])

    def next_round(*_args: object) -> list[Summary]:
        return [line(f"shared prefix, {i}", ttft) for i, ttft in enumerate(next(rounds))]

    monkeypatch.setattr(shared, "shared_prefix", next_round)
    monkeypatch.setattr(shared, "run", lambda lines: lines)
    totals, cold = shared.best_totals(None, shared.Sizes(), 2)
    assert totals == {"cold": 3.0, "warm": 3.0}
    assert cold.name == "shared prefix, 0"


def interference(gap: float, step: float, over_alone: float, still: int = 4) -> list[Summary]:
    running = {
        "gap_before_p50": step,
        "gap_during_max": gap,
        "running_at_its_first_token": still,
    }
    return [
        line("newcomer alone", 1.0),
        line("newcomer", over_alone, ttft_over_alone=over_alone),
        line("running streams", 0.1, **running),
    ]


def test_interference_takes_medians_and_allows_slow_steps_their_gaps() -> None:
    of = script("p8_p9_interference").figures_of
    rounds = [interference(gap, 10.0, over) for gap, over in ((90, 1.0), (150, 1.5), (900, 3.0))]
    gap, newcomer, *others = of(rounds, 4)
    assert (gap.value, gap.bar, gap.aim, gap.verdict) == (150, 200.0, 100.0, "holds")
    assert (newcomer.value, newcomer.verdict) == (1.5, "aim")
    assert values(others)["longest gap of all rounds"] == 900
    (slow, *_) = of([interference(900, 100.0, 1.0)], 4)
    assert (slow.bar, slow.verdict) == (1600.0, "holds")


def test_interference_measures_nothing_once_a_stream_has_ended() -> None:
    with pytest.raises(SystemExit, match="only 3 of 4 streams still ran"):
        script("p8_p9_interference").figures_of([interference(10, 10.0, 1.0, still=3)], 4)


CONVERSATIONS = {
    "multi-turn, turn 1": 200.0,
    "multi-turn, from turn 2": 50.0,
    "before the restart": 50.0,
    "after the restart": 150.0,
}


def test_conversations_are_over_the_other_server_without_a_restart() -> None:
    figures = script("p10_conversations").figures_of(CONVERSATIONS, 100.0)
    assert [figure.value for figure in figures[:4]] == [0.5, 1.5, 0.25, 3.0]
    assert verdicts(figures) == ["aim", "holds"]


def test_rounds_of_conversations_count_by_their_medians() -> None:
    talk = script("p10_conversations")
    assert talk.middle([{"a": 1, "b": 5}, {"a": 9, "b": 4}, {"a": 2, "b": 6}]) == {"a": 2, "b": 5}
    assert talk.best_variant([(3, 9), (1, 2), (4, 1)]) == 2  # medians 3 and 2, whatever was best
    assert talk.best_variant([]) is None


def test_conversations_alone_have_no_verdict() -> None:
    figures = script("p10_conversations").figures_of(CONVERSATIONS, None)
    assert verdicts(figures) == []
    assert [figure.value for figure in figures[:2]] == [0.25, 3.0]


def test_a_trimmed_history_is_over_an_append() -> None:
    times = {"cold": 2.0, "append": 0.2, "trimmed": 0.25, "trimmed, lore": 0.4}
    figures = script("p11_trimmed").figures_of(
        [line(f"history, {kind}", ttft) for kind, ttft in times.items()]
    )
    assert [round(figure.value, 3) for figure in figures[:4]] == [1.25, 2.0, 0.125, 0.1]
    assert verdicts(figures) == ["holds"]


def test_unshared_prompts_are_over_as_many_bare_ones() -> None:
    ratio, last, one = script("p17_unshared").figures_of(4800.0, 1000.0, 4)
    assert (ratio.value, ratio.verdict) == (1.2, "holds")
    assert (last.value, one.value) == (4800.0, 1000.0)
