"""Grammar bombs beside running streams: their gaps with and without, in turns within one run.

In each round some streams run beside a client that sends all bombs, one after another; before and
after it, and so between two rounds, the same streams run alone. The bombs are nested groups, huge
repetitions, references in circles, catastrophic expressions, schemas of ten megabytes. Each has to
be refused, or followed within its limits. The figure is the median over the rounds of p99 of the
gaps beside over p99 of those alone around them: one interruption from elsewhere can spoil a round,
and a machine that gets slower meanwhile spoils none. How far the windows alone differ from each
other tells what the machine does by itself; a growth within that shows nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from common import Figure, Server, conclude, options, parse, run, serve, starter

from naiad.bench.figures import percentile
from naiad.bench.load import Sizes, quiet, run_one
from naiad.bench.prompts import story_prompt
from naiad.bench.results import StreamResult
from naiad.bench.wire import Ask

GAP_GROWTH = 1.1
_TIMEOUT_S = 60.0
_MEGABYTES = 10_000_000
#: Status codes of a deliberate answer: followed, refused, too large.
_FOLLOWED, _REFUSED = (200,), (400, 413)


def bombs() -> dict[str, dict[str, Any]]:
    """Fields of a request, each of which asks for too much."""
    circle = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    deep = '{"properties":{"a":' * 500 + "{}" + "}}" * 500
    held = [{"type": "string", "pattern": f".*{c}.*"} for c in "abcdefghijklmnop"]
    return {
        "nested groups, GBNF": {"grammar": "root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000},
        "nested groups, regex": {"guided_regex": "(" * 60_000 + "a" + ")" * 60_000},
        "repetitions, GBNF": {"grammar": 'root ::= "a"{1,100000000}'},
        "repetitions of repetitions": {"guided_regex": "((a{1000}){1000}){1000}"},
        "catastrophic regex": {"guided_regex": "(a|a)*(a*)*(a|b|ab)*c{50,90}(.*a.{20})"},
        "many states": {"guided_regex": "(.*a.{18}b.*c.{18}){5}"},
        "left and right recursion": {"grammar": 'root ::= root root | "a" | ""'},
        "reference to itself": {"guided_json": {"$ref": "#"}},
        "references in a circle": {"guided_json": {**circle, "$ref": "#/$defs/a"}},
        "many properties": {
            "guided_json": {"type": "object", "properties": {f"p{i}": {} for i in range(4000)}}
        },
        "deep schema": {"guided_json": deep},
        "patterns that all hold": {"guided_json": {"allOf": held}},
        "10 MB in one text": {"guided_json": {"enum": ["x" * _MEGABYTES]}},
        "10 MB of properties": {
            "guided_json": {"properties": {f"p{i}": {} for i in range(_MEGABYTES // 13)}}
        },
        "10 MB of lists": {"guided_json": {"enum": [[]] * (_MEGABYTES // 4)}},
    }


@dataclass
class Outcome:
    """What became of the bombs: name -> status codes, and the longest answer in seconds."""

    statuses: dict[str, set[int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, status: int, seconds: float) -> None:
        self.statuses.setdefault(name, set()).add(status)
        self.seconds[name] = max(seconds, self.seconds.get(name, 0.0))

    def names(self, statuses: tuple[int, ...]) -> list[str]:
        """Bombs that were always answered with one of these."""
        return [name for name, found in self.statuses.items() if found <= set(statuses)]


class Thrower:
    """Sends bombs from a thread, whose sockets need nothing of the measuring client's loop."""

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url).netloc
        self._bodies = {
            name: json.dumps({"prompt": "x", "max_tokens": 8, "seed": 1, **one}).encode()
            for name, one in bombs().items()
        }
        self.outcome = Outcome()

    @contextmanager
    def throwing(self) -> Iterator[threading.Thread]:
        """All of them, one after another; a thread, which the block waits for."""
        thread = threading.Thread(target=self._throw_all)
        thread.start()
        try:
            yield thread
        finally:
            thread.join()

    def _throw_all(self) -> None:
        for name in self._bodies:
            self.throw(name)

    def throw(self, name: str) -> None:
        began = time.perf_counter()
        status = self._send(self._bodies[name])
        self.outcome.add(name, status, time.perf_counter() - began)

    def _send(self, body: bytes) -> int:
        """The status of the answer; 0 when there was none."""
        connection = http.client.HTTPConnection(self._host, timeout=_TIMEOUT_S)
        try:
            connection.request(
                "POST", "/v1/completions", body, {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            answer.read()
        except OSError:
            return 0
        finally:
            connection.close()
        return answer.status


async def gaps(server: Server, sizes: Sizes, n_streams: int) -> list[float]:
    """Milliseconds between pieces of some streams at once."""
    client = server.client()
    asks = [
        Ask(story_prompt(sizes.rng, sizes.prompt_tokens), sizes.tokens, "", sizes.ignore_eos)
        for _ in range(n_streams)
    ]
    streams = await asyncio.gather(*(run_one(client, ask, quiet) for ask in asks))
    results = [stream.result() for stream in streams]
    failed = [result.error for result in results if result.error is not None]
    if failed:
        raise SystemExit(f"{len(failed)} streams failed: {failed[0]}")
    # All began at once; what counts is what lies behind the last one's prompt.
    all_run = max(result.ttft or 0.0 for result in results)
    return [1000 * gap for result in results for gap in _later(result, all_run)]


def _later(result: StreamResult, begin: float) -> Iterator[float]:
    """Its gaps that begin so many seconds after the request, or later."""
    at = result.ttft or 0.0
    for gap in result.gaps:
        if at > begin:
            yield gap
        at += gap


@dataclass(frozen=True)
class Round:
    """Milliseconds between pieces: alone before, beside bombs, alone after."""

    before: list[float]
    beside: list[float]
    after: list[float]

    @property
    def alone(self) -> list[float]:
        return self.before + self.after

    def growth(self, share: float) -> float:
        """Of that percentile, beside over alone."""
        return percentile(self.beside, share) / percentile(self.alone, share)

    def drift(self, share: float) -> float:
        """The greater of the two windows alone over the other: what no bomb has done."""
        both = percentile(self.before, share), percentile(self.after, share)
        return max(both) / min(both)


def measure(
    server: Server, sizes: Sizes, n_streams: int, n_rounds: int
) -> tuple[list[Round], Outcome]:
    """Streams run until all bombs of a round are answered, and half as long alone around it."""
    thrower, rounds = Thrower(server.url), list[Round]()
    run(gaps(server, sizes, n_streams))  # not counted
    before = run(gaps(server, sizes, n_streams))
    for number in range(n_rounds):
        beside, after = list[float](), list[float]()
        with thrower.throwing() as thread:
            while thread.is_alive():
                beside += run(gaps(server, sizes, n_streams))
        while 2 * len(after) < len(beside):
            after += run(gaps(server, sizes, n_streams))
        rounds.append(Round(before, beside, after))
        before = after
        print(
            f"round {number + 1} of {n_rounds}: p99 {rounds[-1].growth(99):.3f}, "
            f"alone {rounds[-1].drift(99):.3f}",
            file=sys.stderr,
        )
    return rounds, thrower.outcome


def figures_of(rounds: list[Round], outcome: Outcome) -> list[Figure]:
    known = _FOLLOWED + _REFUSED
    n_other = len(outcome.statuses) - len(outcome.names(known))
    growths = [one.growth(99) for one in rounds]
    alone = [gap for one in rounds for gap in one.alone]
    beside = [gap for one in rounds for gap in one.beside]
    return [
        Figure("p99 gap beside bombs over alone, median", median(growths), "", GAP_GROWTH),
        Figure("the same, the best round", min(growths)),
        Figure("the same, the worst round", max(growths)),
        Figure("p99 gap alone over alone, median", median(one.drift(99) for one in rounds)),
        Figure("p50 gap beside bombs over alone, median", median(one.growth(50) for one in rounds)),
        Figure("p99 gap alone", percentile(alone, 99), "ms"),
        Figure("p99 gap beside", percentile(beside, 99), "ms"),
        Figure("longest gap alone", max(alone), "ms"),
        Figure("longest gap beside", max(beside), "ms"),
        Figure("bombs that were neither refused nor followed", n_other, "", 0),
        Figure("bombs refused", len(outcome.names(_REFUSED))),
        Figure("bombs followed within their limits", len(outcome.names(_FOLLOWED))),
        Figure("longest answer to a bomb", max(outcome.seconds.values()), "s"),
    ]


def remarks(outcome: Outcome) -> list[str]:
    return [
        f"{name}: {', '.join(map(str, sorted(found)))} within {outcome.seconds[name]:.2f} s"
        for name, found in outcome.statuses.items()
    ]


def parser() -> argparse.ArgumentParser:
    made = options(__doc__)
    made.add_argument("--streams", type=int, default=4)
    made.add_argument("--tokens", type=int, default=150)
    made.add_argument("--rounds", type=int, default=5)
    return made


def main() -> int:
    args = parse(parser(), streams=2, tokens=40, rounds=1)
    sizes = Sizes(tokens=args.tokens)
    with serve(starter(), "--parallel", "8", "--ctx", "8192") as server:
        rounds, outcome = measure(server, sizes, args.streams, args.rounds)
    return conclude(figures_of(rounds, outcome), args, *remarks(outcome))


if __name__ == "__main__":
    sys.exit(main())
