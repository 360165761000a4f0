"""litellm over three APIs of the same server: whole, streamed, tools, schemas, errors."""

from __future__ import annotations

import sys
from typing import Any

import litellm

URL, MODEL = sys.argv[1:]
ASK = [{"role": "user", "content": "Name three colours."}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
ROUTES: tuple[tuple[str, str], ...] = (
    ("openai", f"{URL}/v1"),
    ("hosted_vllm", f"{URL}/v1"),
    ("ollama", URL),
    ("ollama_chat", URL),
    ("anthropic", URL),
)


def main() -> None:
    for provider, base in ROUTES:
        given: dict[str, Any] = {
            "model": f"{provider}/{MODEL}",
            "api_base": base,
            "api_key": "none",
            "temperature": 0,
            "max_tokens": 16,
        }
        told = litellm.completion(messages=ASK, **given)
        assert told.choices[0].message.content, (provider, told)
        assert told.usage.completion_tokens > 0, (provider, told.usage)
        for _ in range(2):
            pieces = litellm.completion(messages=ASK, stream=True, **given)
            text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
            assert text, f"{provider}: an empty stream"
    embedded(f"{URL}/v1")
    tooled(f"{URL}/v1")
    refused(f"{URL}/v1")


def embedded(base: str) -> None:
    told = litellm.embedding(
        model=f"openai/{MODEL}", api_base=base, api_key="none", input=["red", "a long way home"]
    )
    assert len(told.data) == 2, told
    assert len(told.data[0]["embedding"]) > 100, told


def tooled(base: str) -> None:
    told = litellm.completion(
        model=f"openai/{MODEL}",
        api_base=base,
        api_key="none",
        messages=[{"role": "user", "content": "Weather in Rome?"}],
        tools=[TOOL],
        tool_choice="required",
        temperature=0,
        max_tokens=64,
    )
    calls = told.choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["get_weather"], told


def refused(base: str) -> None:
    try:
        litellm.completion(
            model=f"openai/{MODEL}",
            api_base=base,
            api_key="none",
            messages=[{"role": "user", "content": "word " * 20_000}],
            num_retries=0,
        )
    except litellm.exceptions.BadRequestError:
        return
    raise AssertionError("a prompt that does not fit was accepted")


main()
