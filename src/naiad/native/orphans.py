"""Processes that must not outlive the one that started them."""

from __future__ import annotations

import ctypes
import signal
import sys

#: From <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Let the system end this process when the thread that started it ends. On Linux; elsewhere
    nothing happens.

    For processes that are stopped now and then: one that is stopped does not see its pipe end, and
    would keep its memory for ever.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
