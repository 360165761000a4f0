"""Threads that run where nobody else wants to."""

from __future__ import annotations

import contextlib
import os
import sys
import threading


def give_way() -> None:
    """Let the calling thread run only where no other wants to. On Linux; elsewhere, and where a
    sandbox refuses it, nothing happens.

    A decode has a thread on each processor, and all wait at its barriers for the one that was
    interrupted: background work with equal rights makes streams a third slower while it lasts, and
    with the highest niceness a tenth.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
