"""The renderer and its helper process: replaced when it is slow or dies, never mixed up."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator

import pytest

from naiad.errors import InternalError, InvalidRequest, Unsupported
from naiad.service.renderer import Renderer
from naiad.types import ChatMessage, ChatPrompt, ModelInfo, Tool, ToolCall
from patience import PATIENCE_S

MODEL = ModelInfo(name="tiny", bos_token="<s>", eos_token="</s>")
HELLO = ChatPrompt((ChatMessage("user", "你好 😀"),))
ECHO = "{{ bos_token }}{{ messages[-1].content }}"
FOR_EVER = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture
async def renderer() -> AsyncIterator[Renderer]:
    made = Renderer(timeout_s=PATIENCE_S)
    yield made
    await made.close()


def helper_pid(renderer: Renderer) -> int:
    helper = renderer._helper
    assert helper is not None
    return helper.pid


async def test_renders_and_keeps_its_helper(renderer: Renderer) -> None:
    await renderer.start()
    pid = helper_pid(renderer)
    assert await renderer.render(ECHO, HELLO, MODEL) == "<s>你好 😀"
    kwargs = ChatPrompt(HELLO.messages, template_kwargs=(("x", [1, {"y": 2}]),))
    assert await renderer.render("{{ x[1].y }}{{ eos_token }}", kwargs, MODEL) == "2</s>"
    assert helper_pid(renderer) == pid


async def test_errors_keep_their_type_and_field(renderer: Renderer) -> None:
    with pytest.raises(InvalidRequest, match="must alternate") as caught:
        await renderer.render("{{ raise_exception('must alternate') }}", HELLO, MODEL)
    assert caught.value.param == "messages"
    with pytest.raises(Unsupported, match="not valid"):
        await renderer.render("{% if %}", HELLO, MODEL)
    assert await renderer.render(ECHO, HELLO, MODEL) == "<s>你好 😀"


async def test_a_template_without_a_role_for_the_system_gets_its_text_with_the_users(
    renderer: Renderer,
) -> None:
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
    )
    system = ChatMessage("system", "Be kind.")
    both = ChatPrompt((system, *HELLO.messages))
    assert await renderer.render(template, both, MODEL) == "user:Be kind.\n\n你好 😀;"
    with pytest.raises(InvalidRequest, match="no system"):
        await renderer.render(template, ChatPrompt((system,)), MODEL)


async def test_tools_thinking_and_calls_reach_the_template(renderer: Renderer) -> None:
    template = (
        "{{ tools[0].function.name }} {{ enable_thinking }} "
        "{{ messages[1].tool_calls[0].function.arguments.city }}"
    )
    call = ChatMessage("assistant", "", tool_calls=(ToolCall("1", "f", '{"city": "Köln"}'),))
    prompt = ChatPrompt((*HELLO.messages, call), tools=(Tool("f"),), thinking=False)
    assert await renderer.render(template, prompt, MODEL) == "f False Köln"


async def test_a_model_without_a_template_gets_chatml_and_the_log_says_so_once(
    renderer: Renderer, caplog: pytest.LogCaptureFixture
) -> None:
    want = "<|im_start|>user\n你好 😀<|im_end|>\n<|im_start|>assistant\n"
    for _ in range(2):
        assert await renderer.render(None, HELLO, MODEL) == want
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        "tiny has no chat template; chats are rendered as ChatML"
    ]


async def test_a_slow_template_is_stopped_and_the_next_one_works() -> None:
    renderer = Renderer(timeout_s=0.2)
    await renderer.start()
    pid = helper_pid(renderer)
    with pytest.raises(InvalidRequest, match=r"longer than 0\.2 s"):
        await renderer.render(FOR_EVER, HELLO, MODEL)
    assert helper_pid(renderer) != pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    renderer._timeout_s = PATIENCE_S
    assert await renderer.render(ECHO, HELLO, MODEL) == "<s>你好 😀"
    await renderer.close()


SLEEPS = (
    "import sys, time; from naiad.chat.messages import Reply, pack; "
    "out = sys.stdout.buffer; out.write(pack(Reply())); out.flush(); sys.stdin.buffer.read(1); "
    "time.sleep({}); out.write(pack(Reply(text='late'))); out.flush(); sys.stdin.buffer.read()"
)


async def test_one_that_does_not_answer_is_stopped_too() -> None:
    renderer = Renderer(timeout_s=0.01, command=[sys.executable, "-c", SLEEPS.format(600)])
    with pytest.raises(InvalidRequest, match=r"longer than 0\.1 s"):
        await renderer.render(ECHO, HELLO, MODEL)
    await renderer.close()


async def test_seconds_that_others_had_the_processor_do_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("naiad.service.renderer._PATIENCE", 1e6)
    renderer = Renderer(timeout_s=0.001, command=[sys.executable, "-c", SLEEPS.format(0.05)])
    assert await renderer.render(ECHO, HELLO, MODEL) == "late"
    await renderer.close()


async def test_a_helper_that_died_is_replaced(renderer: Renderer) -> None:
    await renderer.start()
    pid = helper_pid(renderer)
    os.kill(pid, signal.SIGKILL)
    assert await renderer.render(ECHO, HELLO, MODEL) == "<s>你好 😀"
    assert helper_pid(renderer) != pid


async def test_ctrl_c_leaves_the_helper_alone(renderer: Renderer) -> None:
    await renderer.start()
    pid = helper_pid(renderer)
    os.kill(pid, signal.SIGINT)
    assert await renderer.render(ECHO, HELLO, MODEL) == "<s>你好 😀"
    assert helper_pid(renderer) == pid


async def test_concurrent_renderings_each_get_their_own(renderer: Renderer) -> None:
    prompts = [ChatPrompt((ChatMessage("user", f"{i}" * 50_000),)) for i in range(8)]
    texts = await asyncio.gather(*(renderer.render(ECHO, one, MODEL) for one in prompts))
    assert texts == ["<s>" + one.messages[0].content for one in prompts]


async def test_a_cancelled_rendering_does_not_answer_the_next_caller(renderer: Renderer) -> None:
    await renderer.start()
    doomed = asyncio.ensure_future(renderer.render(FOR_EVER, HELLO, MODEL))
    await asyncio.sleep(0)  # it has sent its job and waits
    doomed.cancel()
    with pytest.raises(asyncio.CancelledError):
        await doomed
    assert await renderer.render(ECHO, HELLO, MODEL) == "<s>你好 😀"


async def test_the_loop_is_free_while_a_template_runs() -> None:
    renderer = Renderer(timeout_s=PATIENCE_S)
    await renderer.start()
    rendering = asyncio.ensure_future(renderer.render(FOR_EVER, HELLO, MODEL))
    for _ in range(1000):
        await asyncio.sleep(0)
    assert not rendering.done()
    rendering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await rendering
    await renderer.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits address space")
async def test_memory_is_limited(renderer: Renderer) -> None:
    with pytest.raises(InvalidRequest, match="too much memory"):
        await renderer.render("{{ 'x' * 10**10 }}", HELLO, MODEL)


async def test_a_helper_that_cannot_start_is_an_internal_error() -> None:
    renderer = Renderer(command=[sys.executable, "-c", ""])
    with pytest.raises(InternalError, match="does not start"):
        await renderer.start()
    await renderer.close()


GREETS_AND_DIES = (
    "import sys; from naiad.chat.messages import Reply, pack; "
    "sys.stdout.buffer.write(pack(Reply())); sys.stdout.flush(); sys.stdin.buffer.read(1)"
)


async def test_a_job_that_kills_two_helpers_is_an_internal_error() -> None:
    renderer = Renderer(command=[sys.executable, "-c", GREETS_AND_DIES])
    with pytest.raises(InternalError, match="died twice"):
        await renderer.render(ECHO, HELLO, MODEL)
    await renderer.close()


async def test_close_ends_the_helper_and_can_be_repeated(renderer: Renderer) -> None:
    await renderer.start()
    pid = helper_pid(renderer)
    await renderer.close()
    await renderer.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(InternalError, match="closed"):
        await renderer.render(ECHO, HELLO, MODEL)
