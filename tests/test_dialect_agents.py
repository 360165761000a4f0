"""What coding agents send, turn by turn, to the real engine: each turn reuses the one before.

The brief model (naiad.testing.brief) says the same to everything, so a conversation's next prompt
is known to the token. The agents themselves run in `make test-clients`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.client import ServerProcess, serving
from naiad.testing.brief import BRIEF_TEXT, N_ANSWER

pytestmark = [pytest.mark.engine, pytest.mark.soak]

RULES = " ".join(f"Rule {i}: be kind." for i in range(200))
#: Tokens of the second turn that are new: bytes, and its tokenizer writes spaces as U+2581.
N_NEW = len("\n[user] And again.\n[assistant] ".replace(" ", "\u2581").encode())
SCHEMA = {"type": "object", "properties": {"command": {"type": "string"}}}
#: What Claude Code adds to each request, besides what it is about.
CLAUDE_CODE: dict[str, Any] = {
    "model": "m",
    "max_tokens": 32000,
    "thinking": {"type": "adaptive"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "high"},
    "metadata": {"user_id": "user_1"},
    "tools": [{"name": "Bash", "description": "Runs a command.", "input_schema": SCHEMA}],
}
CODEX: dict[str, Any] = {
    "model": "m",
    "instructions": RULES,
    "tools": [
        {"type": "function", "name": "shell", "parameters": SCHEMA, "strict": False},
        {"type": "web_search"},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "medium"},
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "conversation-1",
}


@pytest.fixture(scope="module")
def server(brief: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("agents") / "server.log"
    with serving(log, str(brief), "--ctx", "16384", "--parallel", "2", "--no-disk-cache") as one:
        yield one


def claude_code(server: ServerProcess, code: str, messages: list[Any]) -> Any:
    """One request of its kind; `code` is what its billing line has of its own."""
    cached = {"cache_control": {"type": "ephemeral"}}
    line = f"x-anthropic-billing-header: cc_version=2.1.197.{code}; cc_entrypoint=sdk-cli;"
    system = [
        {"type": "text", "text": line},
        {"type": "text", "text": "You are an agent.", **cached},
        {"type": "text", "text": RULES, **cached},
    ]
    body = CLAUDE_CODE | {"system": system, "messages": messages}
    status, told = server.post("/v1/messages?beta=true", body)
    assert status == 200, told
    return told


def user(text: str) -> dict[str, Any]:
    block = {"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}
    return {"role": "user", "content": [block]}


def test_claude_codes_next_turn_computes_what_is_new_and_nothing_else(
    server: ServerProcess,
) -> None:
    messages = [user("Say hi.")]
    first = claude_code(server, "123", messages)
    assert first["content"][0]["text"] == BRIEF_TEXT
    assert first["usage"]["output_tokens"] == N_ANSWER + 1
    n_first = first["usage"]["input_tokens"] + first["usage"]["cache_read_input_tokens"]

    messages += [{"role": "assistant", "content": first["content"]}, user("And again.")]
    second = claude_code(server, "ffc", messages)
    usage = second["usage"]
    assert usage["cache_read_input_tokens"] == n_first + N_ANSWER
    assert usage["input_tokens"] == N_NEW


def test_codexs_next_turn_computes_what_is_new_and_nothing_else(server: ServerProcess) -> None:
    asked = [{"type": "message", "role": "user", "content": [_input("Say hi.")]}]
    status, first = server.post("/v1/responses", CODEX | {"input": asked})
    assert status == 200, first
    n_first = first["usage"]["input_tokens"]

    again = {"type": "message", "role": "user", "content": [_input("And again.")]}
    turns = [*asked, *first["output"], again]
    status, second = server.post("/v1/responses", CODEX | {"input": turns})
    assert status == 200, second
    assert second["output"][0]["content"][0]["text"] == BRIEF_TEXT
    cached = second["usage"]["input_tokens_details"]["cached_tokens"]
    assert cached == n_first + N_ANSWER
    assert second["usage"]["input_tokens"] - cached == N_NEW


def _input(text: str) -> dict[str, Any]:
    return {"type": "input_text", "text": text}
