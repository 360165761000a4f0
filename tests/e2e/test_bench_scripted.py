"""Every scenario against a whole naiad with the scripted engine, restart and all."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from e2e.client import DEADLINE_S, free_port
from naiad.bench.load import Sizes
from naiad.bench.scenarios import SCENARIOS, num_streams

pytestmark = pytest.mark.soak  # a whole server is too slow for the quick run
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = Sizes(
    streams=3,
    concurrency=(1, 3),
    sweep=(1, 2),
    tokens=6,
    sharers=3,
    prefix_tokens=40,
    running=2,
    long_tokens=60,
    conversations=2,
    turns=2,
    system_tokens=10,
    turn_tokens=5,
    histories=1,
    history_tokens=40,
    per_priority=3,
    rng=random.Random(1),
)


@pytest.fixture(scope="module")
def common() -> Iterator[Any]:
    sys.path.insert(0, str(BENCHMARKS))
    yield import_module("common")
    sys.path.remove(str(BENCHMARKS))


def serving(common: Any, stack: ExitStack, port: int) -> Any:
    """A naiad that says two hundred words a second to each of its streams."""
    flags = ("--engine", "scripted", "--parallel", "4")
    rate = {"NAIAD_SCRIPTED_RATE": "200"}
    return stack.enter_context(common.serve(*flags, env=rate, port=port))


def test_every_scenario_runs_through_without_a_failed_or_wrong_stream(common: Any) -> None:
    port = free_port()
    with ExitStack() as stack:
        serving(common, inner := stack.enter_context(ExitStack()), port)

        async def again() -> None:
            inner.close()
            serving(common, stack, port)

        url = f"http://127.0.0.1:{port}"
        client = common.Client(common.parse_target(url, timeout_s=DEADLINE_S))
        sizes = replace(SMALL, restart=again)
        ended: list[None] = []
        lines = []
        for scenario in SCENARIOS.values():
            lines += common.run(scenario(client, sizes, lambda: ended.append(None)))
    bad = [(line.name, line.errors) for line in lines if line.failed or line.wrong]
    assert bad == []
    assert len(ended) == sum(num_streams(name, sizes) for name in SCENARIOS)
    assert next(line for line in lines if line.name == "after the restart").streams == 2
