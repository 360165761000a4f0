"""Rounds made into one report, and reports drawn."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from naiad.bench.figures import CURVE, Spread, Summary, spread, summarize
from naiad.bench.plot import GAP_LINES, TTFT_LINES, distributions, draw, streams_of, throughput
from naiad.bench.pooling import pool, pool_spreads
from naiad.bench.results import StreamResult
from naiad.errors import ConfigError

PNG = b"\x89PNG\r\n\x1a\n"


def line(name: str, *ttfts: float, error: str | None = None, **extra: float | None) -> Summary:
    """Streams of two tokens, the second one 0.1 s after the first; each started at 0."""
    results = [
        StreamResult(0.0, ttft + 0.2, (ttft, ttft + 0.1), ("a", "b"), 2, error=error)
        for ttft in ttfts
    ]
    return summarize(name, results, extra=extra)


def test_rounds_are_pooled_line_by_line() -> None:
    rounds = [
        [line("sweep 1", 1.0), line("newcomer", 2.0, ratio=1.0)],
        [line("sweep 1", 3.0, error="died"), line("newcomer", 4.0, ratio=2.0)],
    ]
    sweep, newcomer = pool(rounds)
    assert (sweep.name, sweep.streams, sweep.failed, sweep.tokens) == ("sweep 1", 2, 1, 4)
    assert (sweep.wall_s, sweep.errors) == (2.2, ("died",))
    assert sweep.ttft is not None
    assert (sweep.ttft.n, sweep.ttft.p50, sweep.ttft.max) == (2, 2000.0, 3000.0)
    assert newcomer.extra == {"ratio": 1.5}


def test_a_line_that_only_one_round_has_is_kept() -> None:
    assert [got.name for got in pool([[line("a", 1.0)], [line("b", 1.0)]])] == ["a", "b"]
    assert pool([]) == []


def test_pooling_one_round_changes_nothing() -> None:
    lines = [line("a", 0.1, 0.2, 0.4, none=None), line("b", 0.3)]
    assert pool([lines]) == lines


def test_pooled_spreads_hold_every_round_in_equal_parts() -> None:
    slow, quick = spread([1.0] * 5), spread([0.1] * 500)
    got = pool_spreads([slow, None, quick])
    assert got is not None
    assert (got.n, got.p50, got.max) == (505, 550.0, 1000.0)
    assert (got.curve[0], got.curve[-1], len(got.curve)) == (100.0, 1000.0, len(CURVE))
    assert pool_spreads([None]) is None


def test_lines_that_ran_streams_at_once_say_how_many() -> None:
    assert [streams_of(line(name, 1.0)) for name in ("sweep 8", "concurrent 16")] == [8, 16]
    assert [streams_of(line(name, 1.0)) for name in ("multi-turn, turn 1", "sweep")] == [None, None]


def test_speed_is_drawn_over_streams_in_their_order() -> None:
    lines = [line("sweep 2", 0.1, 0.2), line("sweep 1", 0.2), line("consecutive", 1.0)]
    (points,) = throughput({"naiad": lines, "one step only": lines[:1]}).values()
    assert points == [(1.0, lines[1].tokens_per_s), (2.0, lines[0].tokens_per_s)]


def test_distributions_have_a_panel_for_each_line_and_a_curve_for_each_server() -> None:
    many, few = [0.1, 0.2, 0.3, 0.4], [0.1, 0.2]
    series = {
        "a": [line("consecutive", *many), line("sweep 4", *many), line("sweep 2", *many)],
        "b": [line("consecutive", *few), line("sweep 4", *many)],
    }
    panels = distributions(series, TTFT_LINES, lambda summary: summary.ttft)
    assert {name: list(curves) for name, curves in panels.items()} == {
        "consecutive": ["a"],
        "4 streams at once": ["a", "b"],
    }
    assert (panels["consecutive"]["a"][0], panels["consecutive"]["a"][-1]) == ((100, 0), (400, 1))
    gaps = distributions(series, GAP_LINES, lambda summary: summary.gap)
    assert list(gaps) == ["consecutive", "4 streams at once"]


def test_nothing_to_draw_draws_nothing(tmp_path: Path) -> None:
    assert draw({"naiad": [line("newcomer", 1.0)]}, tmp_path / "img") == []
    assert distributions({}, TTFT_LINES, lambda summary: summary.ttft) == {}


def test_a_report_becomes_three_small_images(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    lines = [
        line("consecutive", 0.1, 0.2, 0.3, 9.0),
        line("sweep 1", 0.1),
        line("sweep 4", *[0.1] * 4),
    ]
    paths = draw({"naiad": lines, "other": lines[:1]}, tmp_path / "img")
    assert [path.name for path in paths] == ["throughput.png", "ttft.png", "gaps.png"]
    for path in paths:
        image = path.read_bytes()
        assert image.startswith(PNG)
        assert 2_000 < len(image) < 100_000


def test_without_matplotlib_the_message_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = builtins.__import__

    def gone(name: str, *args: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return there(name, *args)

    monkeypatch.setattr(builtins, "__import__", gone)
    with pytest.raises(ConfigError, match=r"pip install 'naiad\[plot\]'"):
        draw({"naiad": [line("sweep 1", 1.0), line("sweep 2", 1.0)]}, tmp_path)


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot draw into"):
        draw({"naiad": [line("sweep 1", 1.0)]}, tmp_path / "file" / "img")


def test_a_curve_is_part_of_every_spread() -> None:
    got = spread([0.002, 0.001])
    assert got == Spread(2, 1.5, 1.99, 2.0, tuple(1 + p / 100 for p in CURVE))
