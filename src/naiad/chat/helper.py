"""The process that runs chat templates: `python -m naiad.chat.helper`.

It greets once it is warm, answers jobs on stdin with replies on stdout, one at a time, and leaves
when stdin ends. A job that uses up its seconds of the processor ends it, since a machine that is
busy with something else is no fault of a template. The parent kills it when a rendering takes much
longer than that in all; should the parent be gone by then, an alarm does. Ctrl-C is the parent's
business.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import BinaryIO

from naiad.chat import template
from naiad.chat.messages import HEADER_BYTES, Job, Reply, body_size, pack, unpack
from naiad.errors import InternalError, InvalidRequest, NaiadError

_ALARM_S = 30  # much longer than any parent waits
_MEMORY_BYTES = 2 * 1024**3


def answer(job: Job) -> Reply:
    """Render a job; whatever goes wrong becomes a reply."""
    try:
        text = template.render(
            job.template,
            job.messages,
            bos=job.bos,
            eos=job.eos,
            kwargs=job.kwargs,
            continue_final=job.continue_final,
            tools=job.tools,
        )
        text.encode("utf-8")  # a template can build what no text can hold
        return Reply(text=text)
    except NaiadError as error:
        return _failure(error)
    except UnicodeEncodeError:
        return _failure(InvalidRequest("The model's chat template wrote text that is no Unicode."))
    except MemoryError:
        return _failure(InvalidRequest("The model's chat template needs too much memory."))
    except Exception as error:
        return _failure(InternalError(f"Chat template helper: {type(error).__name__}."))


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Greet, then answer jobs until the source ends."""
    _send(sink, Reply())
    while header := source.read(HEADER_BYTES):
        job = unpack(source.read(body_size(header)), Job)
        signal.alarm(_ALARM_S)
        signal.setitimer(signal.ITIMER_PROF, job.cpu_s)
        reply = answer(job)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        _send(sink, reply)


def main() -> None:
    """Serve the parent's pipes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_memory()
    # Replies have a descriptor of their own: nothing printed by accident can get between them.
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    template.render("{{ messages|length }}", [])  # warm: the first one compiles much
    serve(sys.stdin.buffer, sink)


def _send(sink: BinaryIO, reply: Reply) -> None:
    sink.write(pack(reply))
    sink.flush()


def _failure(error: NaiadError) -> Reply:
    return Reply(code=error.code, message=error.message, param=error.param)


def _limit_memory() -> None:
    if sys.platform != "linux":  # macOS accepts the call and ignores it
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = _MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(_MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


if __name__ == "__main__":
    main()
