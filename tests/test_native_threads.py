"""Threads that give way."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from naiad.native.threads import give_way


def is_allowed() -> bool:
    """Some containers refuse it."""
    refusals: list[OSError] = []

    def run() -> None:
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        except OSError as error:
            refusals.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return not refusals


@pytest.mark.skipif(sys.platform != "linux", reason="niceness of a thread is Linux's")
def test_only_the_thread_itself_gives_way() -> None:
    policies: list[int] = []

    def run() -> None:
        give_way()
        policies.append(os.sched_getscheduler(threading.get_native_id()))

    mine = os.sched_getscheduler(threading.get_native_id())
    if not is_allowed():
        pytest.skip("this system lets no thread give way")
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert policies == [os.SCHED_IDLE]
    assert os.sched_getscheduler(threading.get_native_id()) == mine


@pytest.mark.skipif(sys.platform != "linux", reason="niceness of a thread is Linux's")
def test_where_it_is_refused_the_thread_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    give_way()
