"""The process that tries grammars out first: `python -m naiad.engine.grammar.helper`.

A grammar comes from whoever may send requests. Here it may exhaust a stack, memory or time, and all
that is lost is a child of this process, one for each grammar: a bomb costs no start of another
Python. One JSON line in, {"kind", "text", "cpu_s", "timeout_s"}, one out: {"error": reason or null,
"definition": the grammar as llguidance reads it, "cpu_s": seconds of the processor it took}. An
empty line greets the parent once it is warm. A grammar that uses up its seconds of the processor
ends its child by SIGPROF; what the child said until then counts, of an error first what it is, then
where.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from typing import Any, NoReturn

from llguidance import LLMatcher, LLTokenizer

from naiad.engine.grammar.definition import define, limits, refusal
from naiad.engine.grammar.lines import in_callers_text
from naiad.engine.grammar.place import Schema, place_of
from naiad.errors import InvalidRequest

#: Characters of a place that are passed on: it holds the names that the caller has given.
_MOST_SHOWN = 200

_ALARM_S = 30  # much longer than any parent waits
_MEMORY_BYTES = 1 << 30
_STACK_BYTES = 2 << 20  # less than the parent's threads have: what passes here passes there
#: Grammars in use are compiled within so many seconds; what takes longer stands back.
QUICK_S = 0.02
_SEARCH_S = 0.1  # for the place in a schema that is refused
_PIECE = 1 << 16


def try_out(kind: str, text: str, vocabulary: LLTokenizer) -> dict[str, Any]:
    """Compile, and take the first step: much is put off until then."""
    try:
        definition = define(kind, text)
        reason = _compiled(definition, vocabulary)
    except InvalidRequest as error:
        return {"error": error.message}
    except MemoryError:
        return {"error": "the grammar needs too much memory"}
    told = refusal(in_callers_text(kind, text, reason)).message if reason else None
    return {"error": told, "definition": definition}


def _compiled(definition: str, vocabulary: LLTokenizer) -> str:
    """What llguidance has against it; "" for nothing."""
    matcher = LLMatcher(vocabulary, definition, log_level=0, limits=limits())
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher.get_error()


def locate(text: str, error: str, vocabulary: LLTokenizer) -> str:
    """The same error with the place in the schema that it means; seconds are _SEARCH_S at most,
    but for the last part that is tried."""

    def reason_of(schema: Schema) -> str:
        reply = try_out("json_schema", json.dumps(schema), vocabulary)
        return str(reply["error"] or "").partition("\n")[0]

    until = time.process_time() + _SEARCH_S
    place = place_of(json.loads(text), reason_of, lambda: time.process_time() > until)
    return error.replace("compiled: ", f"compiled: at {place[:_MOST_SHOWN]}: ", 1)


def in_a_child(job: dict[str, Any], vocabulary: LLTokenizer) -> dict[str, Any]:
    """The reply to a job, worked out by a child that may die of it."""
    source, sink = os.pipe()
    try:
        child = os.fork()
    except OSError:
        os.close(source)
        os.close(sink)
        return {"error": "there is no process free to try the grammar out; try again", "cpu_s": 0.0}
    if not child:
        _be_the_child(job, vocabulary, sink)
    os.close(sink)
    said = bytearray()
    try:
        _listen(source, child, job["timeout_s"], said)
    except TimeoutError:
        os.kill(child, signal.SIGKILL)
        if b"\n" not in said:  # else it was looking for the place of what it has against it
            said[:] = json.dumps({"error": _too_long(job["timeout_s"])}).encode() + b"\n"
    os.close(source)
    _, status, used = os.wait4(child, 0)
    return {**_reply(said, status, job["cpu_s"]), "cpu_s": used.ru_utime + used.ru_stime}


def _reply(said: bytes | bytearray, status: int, cpu_s: float) -> dict[str, Any]:
    """What a child said, or why it died of its grammar, perhaps amid a word."""
    lines = said.split(b"\n")[:-1]  # behind the last end of a line stands a word cut short
    try:
        reply: dict[str, Any] = json.loads(lines[-1] if lines else b"")
    except ValueError:
        is_spent = os.waitstatus_to_exitcode(status) == -signal.SIGPROF
        too_large = "the grammar is too large or too deep to be compiled"
        return {"error": _too_long(cpu_s) if is_spent else too_large}
    return reply


def _be_the_child(job: dict[str, Any], vocabulary: LLTokenizer, sink: int) -> NoReturn:
    try:
        signal.alarm(_ALARM_S)
        signal.setitimer(signal.ITIMER_PROF, job["cpu_s"])
        reply = try_out(job["kind"], job["text"], vocabulary)
        with open(sink, "wb") as stream:
            stream.write(json.dumps(reply).encode() + b"\n")
            stream.flush()
            if job["kind"] == "json_schema" and reply["error"] and "definition" in reply:
                told = locate(job["text"], reply["error"], vocabulary)
                stream.write(json.dumps({"error": told}).encode() + b"\n")
            signal.setitimer(signal.ITIMER_PROF, 0)
    finally:
        os._exit(0)  # whatever happened: the loop below is the parent's


def _listen(source: int, child: int, timeout_s: float, said: bytearray) -> None:
    """To the child's end, into `said`. It stands back when that takes long. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    if not select.select([source], [], [], min(QUICK_S, timeout_s))[0]:
        stand_back(child)
    while True:
        if not select.select([source], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        piece = os.read(source, _PIECE)
        if not piece:
            return
        said += piece


def stand_back(pid: int) -> None:
    """Let a process have what all others leave of the processor, so that streams notice nothing."""
    with contextlib.suppress(OSError):  # gone; or a sandbox that forbids it, and it is only a hint
        if sys.platform == "linux":
            os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
        else:
            os.setpriority(os.PRIO_PROCESS, pid, 19)


def _too_long(seconds: float) -> str:
    return f"the grammar took longer than {seconds:g} s to compile and was given up"


def main() -> None:
    """Serve the parent's pipes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    _limit_memory()
    vocabulary = LLTokenizer("byte")  # the smallest there is: a token for each byte
    sys.stdout.write("\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(in_a_child(json.loads(line), vocabulary)) + "\n")
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
