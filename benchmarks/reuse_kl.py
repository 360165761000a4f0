"""What reusing computed prompts does to a real model's next-token probabilities.

    python benchmarks/reuse_kl.py [MODEL ...] [--prompts N] [--quick] [--json]

Each prompt's next token is asked for in many ways, and compared with the same prompt computed anew,
alone, in an empty pool:

* *alone*: once more, anew: has to be equal to the last bit, or the other figures mean nothing;
* *same place*: from host memory, and from disk after a restart, into an empty pool: bit-equal;
* *branch, same chunks*: a prefix that ends where a chunk of computing ends: bit-equal too;
* *anew beside others* (the control): in the pool, in the steps of other sequences, eight times with
  one to four others of different texts and lengths. Nothing is reused: sums are only added in
  another order;
* *branch*, *branch beside others*, *running*: a prefix from host memory or of a running sequence;
  at most twice the control's largest divergence is what counts as exact;
* *trimmed*, *lore*: pieces at other positions. Not exact, since what they once looked at is gone.

Divergence is Kullback-Leibler's, of the way from the reference, in nats.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics

from naiad.config import EngineConfig
from naiad.engine.base import CoreJob
from naiad.engine.choosing import CaughtUp, Said
from naiad.engine.llama import LlamaBackend, load
from naiad.ipc.messages import StreamItem
from naiad.models.catalogue import find, models_dir
from naiad.types import SamplingParams

import numpy as np  # isort: skip  (after llama_cpp)
import numpy.typing as npt  # isort: skip

Logits = npt.NDArray[np.float32]
GREEDY = SamplingParams(temperature=0)
CONTROL = "anew beside others"
#: How many others, each time that the control is run. Some prompts are ten times as sensitive
#: to the order of sums as others, and the one of a few on which a way happens to be far off must
#: have shown it in the control too: so a prompt has many runs of the control for one of each way.
N_OTHERS = (1, 2, 3, 4) * 2
BIT_EQUAL = (
    "alone",
    "same place, from memory",
    "same place, from disk",
    "branch, same chunks",
)
EXACT = ("branch", "branch beside others", "running")
SHIFTED = ("trimmed", "lore")


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two distributions: divergence in nats; whether the likeliest token and all bits agree.

    n_cached: tokens of the prompt that were reused.
    """

    kl: float
    is_same_top: bool
    is_bit_equal: bool
    n_cached: int


def difference(reference: Logits, other: Logits, n_cached: int) -> Difference:
    p, q = (_log_probabilities(x) for x in (reference, other))
    return Difference(
        kl=max(0.0, float(np.sum(np.exp(p) * (p - q)))),
        is_same_top=bool(reference.argmax() == other.argmax()),
        is_bit_equal=bool(np.array_equal(reference, other)),
        n_cached=n_cached,
    )


def _log_probabilities(logits: Logits) -> npt.NDArray[np.float64]:
    x = logits.astype(np.float64) - float(logits.max())
    result: npt.NDArray[np.float64] = x - np.log(np.sum(np.exp(x)))
    return result


class Engine:
    """A loaded model, asked for the logits after a prompt."""

    def __init__(self, model: Path, folder: Path) -> None:
        self._config = EngineConfig(
            model=str(model),
            parallel=6,
            ctx=2048,
            lane=True,
            n_ubatch=128,  # longer prompts go through the lane, so their last token comes alone
            drafts=False,
            host_cache_mib=512,
            disk_cache_dir=str(folder),
        )
        self._uid = 0
        self._open()

    def _open(self) -> None:
        backend = load(self._config)(lambda _: None)
        assert isinstance(backend, LlamaBackend)
        self.backend = backend
        self._logits: dict[int, Logits] = {}
        assert backend.core._lane is not None
        backend.core._lane._threads = 1  # two would wait for each other where others compute too
        cost = backend.core._cost  # the same steps, however fast the machine is just now
        cost._decode_s = 0.04
        cost.saw_decode = lambda *_: None  # type: ignore[method-assign]
        cost.saw_prefill = lambda *_, **__: None  # type: ignore[method-assign]
        self._news = threading.Event()
        backend.core.set_waker(self._news.set)
        chooser, executor = backend.core._chooser, backend.core._executor
        choose = chooser.choose

        def noting(caught_up: list[CaughtUp]) -> list[Said]:
            for c in caught_up:
                self._logits.setdefault(c.sequence.uid, executor.logits(c.run).copy())
            return choose(caught_up)

        chooser.choose = noting  # type: ignore[method-assign]

    def close(self) -> None:
        self.backend.core.close()
        self.backend.model.close()

    def restart(self) -> None:
        self.settle()
        self.backend.flush(60)
        self.close()
        self._open()

    def add(self, prompt: list[int], namespace: str, n: int = 1) -> int:
        self._uid += 1
        self.backend.core.add(CoreJob(self._uid, tuple(prompt), n, GREEDY, namespace))
        return self._uid

    def wait_for(self, uid: int) -> tuple[Logits, int]:
        """The logits after its prompt, and how many tokens of it were reused."""
        n_cached = 0
        while uid not in self._logits:
            for item in self._step():
                n_cached = item.n_cached if item.uid == uid else n_cached
        return self._logits[uid], n_cached

    def _step(self) -> list[StreamItem]:
        """One step, after the lane where nothing else is to be done."""
        self._news.clear()
        if not self.backend.core.has_work():
            self._news.wait(60)
        return self.backend.core.step()

    def settle(self) -> None:
        """End all that runs, and bring everything to host memory: the pool is empty."""
        core = self.backend.core
        for uid in list(core._by_uid):
            core.abort(uid)
        while core._by_uid or core.has_work():
            self._step()
        while core.idle_slice():
            pass

    def ask(self, prompt: list[int], namespace: str) -> tuple[Logits, int]:
        found = self.wait_for(self.add(prompt, namespace))
        self.settle()
        return found


def texts(engine: Engine, n: int, rng: random.Random) -> list[list[int]]:
    """n prompts of 300 to 500 tokens, cut from Python's manual, the same each time."""
    encode = engine.backend.tokenizer.encode
    manual = "\n".join(topics[name] for name in sorted(topics))
    bos = encode("", add_special=True, parse_special=False)
    prompts = []
    for _ in range(n):
        at = rng.randrange(len(manual) - 10_000)
        tokens = encode(manual[at : at + 10_000], add_special=False, parse_special=False)
        prompts.append([*bos, *tokens[: rng.randrange(300, 500)]])
    return prompts


class Trial:
    """One prompt, asked for in every way, beside some of `others`."""

    def __init__(
        self, engine: Engine, prompt: list[int], others: list[list[int]], name: str
    ) -> None:
        self._engine = engine
        self._prompt = prompt
        self._others = others
        self._rng = random.Random(name)
        self._name = name
        self._n = 0
        self._reference = engine.ask(self._prompt, self._fresh())[0]

    def _fresh(self) -> str:
        """A namespace in which nothing was computed."""
        self._n += 1
        return f"{self._name}.{self._n}"

    def ways(self) -> Iterable[tuple[str, Callable[[], Difference]]]:
        yield "alone", lambda: self._compared(self._fresh())
        yield "same place, from memory", self._again
        yield "branch, same chunks", lambda: self._compared(self._warm(self._prompt[:128]))
        for n_others in N_OTHERS:
            yield CONTROL, partial(self._anew_beside, n_others)
        yield "branch", lambda: self._compared(self._warm(self._prompt[: self._cut]))
        yield "branch beside others", lambda: self._beside(self._warm(self._prompt[: self._cut]))
        yield "running", self._of_a_running_one
        yield "trimmed", lambda: self._compared(self._warm(self._untrimmed()))
        yield "lore", lambda: self._compared(self._warm(self._without_lore()))

    @property
    def _cut(self) -> int:
        return len(self._prompt) * 3 // 4

    def _compared(self, namespace: str) -> Difference:
        return difference(self._reference, *self._engine.ask(self._prompt, namespace))

    def _again(self) -> Difference:
        namespace = self._warm(self._prompt)
        return self._compared(namespace)

    def after_restart(self) -> Difference:
        """`namespace` of the first `_again`: what it left is on disk now."""
        return self._compared(f"{self._name}.again")

    def leave_for_restart(self) -> None:
        self._engine.ask(self._prompt, f"{self._name}.again")

    def _warm(self, prompt: list[int]) -> str:
        """A namespace in which this was computed before, and is in host memory."""
        namespace = self._fresh()
        tail = self._tail(len(prompt)) if prompt != self._prompt else []
        self._engine.ask([*prompt, *tail], namespace)
        return namespace

    def _tail(self, at: int) -> list[int]:
        """Eight tokens, of which the first is not the prompt's own there, or it would be reused."""
        rest = iter(self._others[0][1:])
        first = next(token for token in rest if [token] != self._prompt[at : at + 1])
        return [first, *islice(rest, 7)]

    def _start_others(self, n: int = 3) -> None:
        for other in self._rng.sample(self._others, n):
            n_tokens = self._rng.randrange(60, 250)
            uid = self._engine.add(other[:n_tokens], self._fresh(), 200)
            self._engine.wait_for(uid)

    def _beside(self, namespace: str) -> Difference:
        self._start_others()
        return self._compared(namespace)

    def _anew_beside(self, n_others: int) -> Difference:
        """Not in the lane, where a prompt is computed as if it were alone."""
        self._start_others(n_others)
        uid = self._engine.add(self._prompt, self._fresh())
        self._engine.backend.core._by_uid[uid].is_lane_shut = True
        found = difference(self._reference, *self._engine.wait_for(uid))
        self._engine.settle()
        return found

    def _of_a_running_one(self) -> Difference:
        namespace = self._fresh()
        first = [*self._prompt[: self._cut], *self._others[0][1:40]]
        self._engine.wait_for(self._engine.add(first, namespace, 200))
        return self._compared(namespace)

    def _untrimmed(self) -> list[int]:
        """The same history before its oldest turns were dropped."""
        kept = len(self._prompt) // 6
        return [*self._prompt[:kept], *self._others[1][1:200], *self._prompt[kept:-20]]

    def _without_lore(self) -> list[int]:
        """The same history before 60 tokens were inserted in the middle."""
        middle = len(self._prompt) // 2
        return [*self._prompt[: middle - 60], *self._prompt[middle:-20]]


def measure(model: Path, n_prompts: int, folder: Path) -> dict[str, list[Difference]]:
    """The differences of each way, one for each prompt."""
    engine = Engine(model, folder)
    try:
        prompts = texts(engine, n_prompts, random.Random(1))
        others = texts(engine, 8, random.Random(2))
        found: dict[str, list[Difference]] = {}
        trials = [Trial(engine, prompt, others, f"prompt {i}") for i, prompt in enumerate(prompts)]
        for i, trial in enumerate(trials):
            print(f"{model.stem}: prompt {i + 1} of {n_prompts}", file=sys.stderr, flush=True)
            for name, compare in trial.ways():
                found.setdefault(name, []).append(compare())
            trial.leave_for_restart()
        engine.restart()
        found["same place, from disk"] = [trial.after_restart() for trial in trials]
        return found
    finally:
        engine.close()


def verdict(name: str, found: dict[str, list[Difference]]) -> str:
    """holds or FALLS SHORT for what is promised, nothing for the control and what is shifted."""
    bound = 2 * max(d.kl for d in found[CONTROL])
    if name in BIT_EQUAL:
        return "holds" if all(d.is_bit_equal for d in found[name]) else "FALLS SHORT"
    if name in EXACT:
        return "holds" if max(d.kl for d in found[name]) <= bound else "FALLS SHORT"
    return ""


def table(found: dict[str, list[Difference]]) -> list[str]:
    lines = [
        "| way | reused | KL median | KL max | same top token | bit-equal | |",
        "|" + " --- |" * 7,
    ]
    for name, all_of_it in found.items():
        n = len(all_of_it)
        kl = [d.kl for d in all_of_it]
        reused = round(sum(d.n_cached for d in all_of_it) / n)
        tops, bits = (
            sum(getattr(d, f) for d in all_of_it) for f in ("is_same_top", "is_bit_equal")
        )
        row = (
            f"| {name} | {reused} | {np.median(kl):.1e} | {max(kl):.1e} | {tops}/{n} | {bits}/{n} |"
        )
        lines.append(f"{row} {verdict(name, found)} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", default=["starter", "gemma3"])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--quick", action="store_true", help="4 prompts")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    falls_short = False
    for name in args.models:
        with tempfile.TemporaryDirectory(prefix="naiad-kl-") as folder:
            n_prompts = 4 if args.quick else args.prompts
            found = measure(find(name, models_dir()), n_prompts, Path(folder))
        falls_short |= any(verdict(way, found) == "FALLS SHORT" for way in found)
        if args.json:
            kl = {way: [d.kl for d in differences] for way, differences in found.items()}
            print(json.dumps({"model": name, "kl": kl}))
        else:
            print(f"{name}, {n_prompts} prompts, mean tokens reused:\n")
            print("\n".join(table(found)) + "\n")
    return int(falls_short)


if __name__ == "__main__":
    sys.exit(main())
