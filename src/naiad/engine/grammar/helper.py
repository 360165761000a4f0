"""The process that tries grammars out first: `python -m naiad.engine.grammar.helper`.

A grammar comes from whoever may send requests. Here it may exhaust a stack, memory or time, and all
that is lost is this process. One JSON line in, {"kind", "text", "cpu_s"}, one out: {"error": reason
or null, "definition": the grammar as llguidance reads it}. An empty line greets the parent once it
is warm. One that uses up its seconds of the processor ends the process by SIGPROF.
"""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from naiad.engine.grammar.definition import define, limits, refusal
from naiad.errors import InvalidRequest

_ALARM_S = 30  # much longer than any parent waits
_MEMORY_BYTES = 1 << 30
_STACK_BYTES = 2 << 20  # less than the parent's threads have: what passes here passes there


def try_out(kind: str, text: str, vocabulary: LLTokenizer) -> dict[str, Any]:
    """Compile, and take the first step: much is put off until then."""
    try:
        definition = define(kind, text)
        matcher = LLMatcher(vocabulary, definition, log_level=0, limits=limits())
        if not matcher.is_error():
            matcher.compute_bitmask()
        if reason := matcher.get_error():
            raise refusal(reason)
    except InvalidRequest as error:
        return {"error": error.message}
    except MemoryError:
        return {"error": "the grammar needs too much memory"}
    return {"error": None, "definition": definition}


def main() -> None:
    """Serve the parent's pipes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    _limit_memory()
    vocabulary = LLTokenizer("byte")  # the smallest there is: a token for each byte
    sys.stdout.write("\n")
    sys.stdout.flush()
    for line in sys.stdin:
        job = json.loads(line)
        signal.alarm(_ALARM_S)
        signal.setitimer(signal.ITIMER_PROF, job["cpu_s"])
        reply = try_out(job["kind"], job["text"], vocabulary)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


def _limit_memory() -> None:
    if sys.platform != "linux":  # macOS accepts the call and ignores it
        return
    import resource

    for kind, wanted in (
        (resource.RLIMIT_AS, _MEMORY_BYTES),
        (resource.RLIMIT_STACK, _STACK_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (soft, hard))


if __name__ == "__main__":
    main()
