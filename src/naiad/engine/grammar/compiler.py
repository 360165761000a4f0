"""Grammars made ready for one vocabulary, and kept for the next request that brings them."""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future
from typing import TYPE_CHECKING

from naiad.engine.grammar.definition import limits, refusal
from naiad.engine.grammar.follower import Follower
from naiad.engine.grammar.vetting import Vetted, Vetting
from naiad.engine.grammar.vocabulary import SharedTokenizer, Vocabulary
from naiad.errors import InvalidRequest
from naiad.native.threads import give_way
from naiad.types import Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

#: Compiled grammars that are kept; each holds its text and some tables, rarely above 1 MiB.
_MOST_KEPT = 64
#: One that takes its full time must not hold up all others.
N_AT_ONCE = 2
_MOST_CPU_S = 2.0  # with the whole vocabulary; trying it out beforehand may take half of that
_QUICK_S = 0.02  # of the processor: what takes longer is compiled where streams do not notice

_APART_S = 8.0  # there; after that streams have to notice


class GrammarCompiler:
    """Compiles for one vocabulary. Thread-safe; `compile` takes up to seconds, `cached` none."""

    def __init__(self, vocab: Vocabulary, vetting: Vetting | None = None) -> None:
        self._vocab = vocab
        self._vettings = [vetting] if vetting else [Vetting() for _ in range(N_AT_ONCE)]
        self._free: queue.LifoQueue[Vetting] = queue.LifoQueue()  # so that one warm helper does
        for one in self._vettings:
            self._free.put(one)
        self._tokenizer = SharedTokenizer(vocab)
        self._kept: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()
        self._lock = threading.Lock()
        self._apart = threading.BoundedSemaphore(N_AT_ONCE)  # threads that have given way

    def prepare(self) -> bool:
        """Part of what the first grammar needs, best done before it comes. False: that is all."""
        return self._tokenizer.prepare()

    def cached(self, grammar: Grammar) -> Follower | None:
        """At the beginning of a grammar that was compiled lately; None when it was not."""
        key = grammar.kind, grammar.text
        try:
            matcher = self._kept[key]
            self._kept.move_to_end(key)
        except KeyError:  # also when another thread has just dropped it
            return None
        return Follower(matcher.deep_copy(), self._vocab, grammar.after, grammar.opening)

    def compile(self, grammar: Grammar) -> Follower:
        """At the beginning of the grammar. Raises InvalidRequest, which says what is wrong with it.

        A helper process tries it out first; see naiad.engine.grammar.helper. Further calls than
        N_AT_ONCE wait for their turn.
        """
        vetting = self._free.get()
        try:
            if found := self.cached(grammar):
                return found
            vetted = vetting.vet(grammar.kind, grammar.text)
        finally:
            self._free.put(vetting)
        matcher = self._built(vetted)
        with self._lock:
            self._kept[grammar.kind, grammar.text] = matcher
            if len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return Follower(matcher.deep_copy(), self._vocab, grammar.after, grammar.opening)

    def _built(self, vetted: Vetted) -> LLMatcher:
        """llguidance lets go of the interpreter, so this one thread's place is all that matters.

        Who has given way can often not come back: a thread for a slow one. When all others leave
        it too little, it is built here after all, as is one that finds no such thread free.
        """
        tokenizer = self._tokenizer.get()  # by Python code: not where others come first
        if vetted.cpu_s <= _QUICK_S or not self._apart.acquire(blocking=False):
            return _build(tokenizer, vetted.definition)
        found: Future[LLMatcher] = Future()

        def build_apart() -> None:
            try:
                give_way()
                found.set_result(_build(tokenizer, vetted.definition))
            except Exception as error:  # whatever it is, somebody waits for an answer
                found.set_exception(error)
            finally:
                self._apart.release()

        threading.Thread(target=build_apart, name="naiad-slow-grammar").start()
        try:
            return found.result(_APART_S)
        except TimeoutError:
            return _build(tokenizer, vetted.definition)

    def close(self) -> None:
        """End the helpers. Safe to call twice."""
        for vetting in self._vettings:
            vetting.close()


def _build(tokenizer: LLTokenizer, definition: str) -> LLMatcher:
    from llguidance import LLMatcher

    began = time.thread_time()
    matcher = LLMatcher(tokenizer, definition, log_level=0, limits=limits())
    if not matcher.is_error():
        matcher.compute_bitmask()
    if reason := matcher.get_error():
        raise refusal(reason)
    if time.thread_time() - began > _MOST_CPU_S:
        raise InvalidRequest("the grammar takes too long to follow with this vocabulary")
    return matcher
