"""Chat templates, rendered in a warm helper process that can be killed.

A template is a program out of a model file. It must not stall the event loop or outlive its
welcome, so it runs elsewhere, and a helper that has not answered in time is killed and replaced.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import msgspec

import naiad
from naiad.chat.chatml import CHATML
from naiad.chat.messages import HEADER_BYTES, Job, Reply, body_size, pack, unpack
from naiad.chat.tools import tools_for, turns_for, with_system_folded
from naiad.errors import InternalError, InvalidRequest, from_code
from naiad.types import ChatPrompt, ModelInfo

log = logging.getLogger(__name__)

#: -P: the directory the server was started in is no place to import from.
_COMMAND = (sys.executable, "-P", "-m", "naiad.chat.helper")
_START_TIMEOUT_S = (
    60.0  # a busy machine may take long to start Python; a template gets no such time
)
_DYING_S = 10.0  # a helper that has closed its output is about to end
#: A rendering may take this many times its seconds of the processor in all.
_PATIENCE = 10


class _HelperDied(Exception):
    """The pipe broke before the answer was there."""


class Renderer:
    """Owner of one helper process; renderings run one after another.

    Args:
        timeout_s: seconds of the processor that one rendering may take; ten times that in all.
        command: how the helper is started.
    """

    def __init__(self, *, timeout_s: float = 1.0, command: Sequence[str] = _COMMAND) -> None:
        self._timeout_s = timeout_s
        self._command = tuple(command)
        self._turn = asyncio.Lock()
        self._helper: Process | None = None
        self._is_closed = False
        self._told: set[str] = set()  # models whose missing template was logged

    async def start(self) -> None:
        """Start the helper, so that the first request does not wait for it."""
        async with self._turn:
            await self._warm_helper()

    async def render(self, template: str | None, prompt: ChatPrompt, model: ModelInfo) -> str:
        """The prompt text that a template makes of a conversation; None stands for ChatML.

        A template that refuses a system's turn gets its text in the first turn of the user.

        Raises:
            Unsupported: the template is broken.
            InvalidRequest: the template refused the messages, failed on them, or took too long.
            InternalError: the helper cannot be started, or dies of this job twice.
        """
        job = _job(template or self._fallback(model), prompt, model)
        async with self._turn:
            job = msgspec.structs.replace(job, cpu_s=self._timeout_s)
            reply = await self._answer(pack(job))
            folded = with_system_folded(job.messages)
            if reply.code == InvalidRequest.code and folded is not None:
                second = await self._answer(pack(msgspec.structs.replace(job, messages=folded)))
                reply = second if second.code is None else reply
        if reply.code is not None:
            error = from_code(reply.code, reply.message)
            error.param = reply.param
            raise error
        return reply.text

    async def close(self) -> None:
        """End the helper. Safe to call twice; nothing can be rendered afterwards."""
        self._is_closed = True
        async with self._turn:
            await self._kill()

    def _fallback(self, model: ModelInfo) -> str:
        """ChatML, which most models follow at least roughly; said once in the log."""
        if model.name not in self._told:
            self._told.add(model.name)
            log.warning("%s has no chat template; chats are rendered as ChatML", model.name)
        return CHATML

    async def _answer(self, frame: bytes) -> Reply:
        try:
            return await self._ask(frame)
        except _HelperDied:
            # It may have died of something else, long ago: one more try tells.
            try:
                return await self._ask(frame)
            except _HelperDied:
                raise InternalError("The chat template helper died twice of one job.") from None

    async def _ask(self, frame: bytes) -> Reply:
        helper = await self._warm_helper()
        try:
            async with asyncio.timeout(_PATIENCE * self._timeout_s):
                return await _exchange(helper, frame)
        except TimeoutError:
            await self._give_up(_PATIENCE * self._timeout_s)
        except _HelperDied:
            with suppress(TimeoutError):  # a signal sent meanwhile would hide what it died of
                async with asyncio.timeout(_DYING_S):
                    await helper.wait()
            await self._kill()
            if helper.returncode != -signal.SIGPROF:
                raise
            await self._give_up(self._timeout_s)
        except BaseException:
            # Left in the middle (cancelled): an answer may still be on its way, and it must never
            # become the next caller's.
            await self._kill()
            raise

    async def _give_up(self, seconds: float) -> NoReturn:
        await self._kill()
        await self._warm_helper()
        raise InvalidRequest(
            f"The model's chat template took longer than {seconds:g} s on these messages and was "
            "stopped.",
            param="messages",
        ) from None

    async def _warm_helper(self) -> Process:
        if self._helper is not None and self._helper.returncode is None:
            return self._helper
        await self._kill()
        if self._is_closed:
            raise InternalError("The chat template helper is closed.")
        self._helper = await _spawn(self._command)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await _receive(self._helper)  # its greeting
        except (TimeoutError, _HelperDied):
            await self._kill()
            raise InternalError("The chat template helper does not start.") from None
        except BaseException:
            await self._kill()
            raise
        return self._helper

    async def _kill(self) -> None:
        helper, self._helper = self._helper, None
        if helper is None:
            return
        if helper.returncode is None:
            helper.kill()
        assert helper.stdin is not None
        helper.stdin.close()
        await helper.wait()


def _job(template: str, prompt: ChatPrompt, model: ModelInfo) -> Job:
    return Job(
        template=template,
        messages=turns_for(template, prompt),
        bos=model.bos_token,
        eos=model.eos_token,
        kwargs={**_thinking(prompt), **dict(prompt.template_kwargs)},
        continue_final=prompt.continue_final,
        tools=tools_for(template, prompt.tools),
    )


def _thinking(prompt: ChatPrompt) -> dict[str, bool]:
    """The variables that templates of reasoning models look at."""
    wish = prompt.thinking
    return {} if wish is None else {"enable_thinking": wish, "thinking": wish}


async def _spawn(command: Sequence[str]) -> Process:
    root = str(Path(naiad.__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env=env)


async def _exchange(helper: Process, frame: bytes) -> Reply:
    assert helper.stdin is not None
    if helper.stdin.is_closing():
        raise _HelperDied
    try:
        helper.stdin.write(frame)
        await helper.stdin.drain()
    except (BrokenPipeError, ConnectionResetError):
        raise _HelperDied from None
    return await _receive(helper)


async def _receive(helper: Process) -> Reply:
    assert helper.stdout is not None
    try:
        size = body_size(await helper.stdout.readexactly(HEADER_BYTES))
        return unpack(await helper.stdout.readexactly(size), Reply)
    except (asyncio.IncompleteReadError, ConnectionResetError):
        raise _HelperDied from None
