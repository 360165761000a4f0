"""What the answers of each dialect say, streamed and whole, put into one shape to be compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from dialect_cases import events

Told = dict[str, Any]


@dataclass
class Said:
    """One answer. calls: names and arguments; of arguments that are told as objects, their JSON."""

    text: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)
    end: str | None = None


def _chat(answers: list[Said], choice: Told, part: Told) -> None:
    said = answers[choice["index"]]
    said.text += part.get("content") or ""
    said.reasoning += part.get("reasoning_content") or ""
    said.end = choice["finish_reason"] or said.end
    for place, call in enumerate(part.get("tool_calls") or ()):
        if "id" in call:
            said.calls.append([call["function"]["name"], ""])
        said.calls[call.get("index", place)][1] += call["function"]["arguments"]


def fold_chat(told: Iterable[Any]) -> list[Said]:
    """/v1/chat/completions."""
    answers = [Said(), Said()]
    for chunk in told:
        for choice in chunk["choices"]:
            _chat(answers, choice, choice["delta"] if "delta" in choice else choice["message"])
    return answers


def fold_completions(told: Iterable[Any]) -> list[Said]:
    """/v1/completions."""
    answers = [Said(), Said()]
    for chunk in told:
        for choice in chunk["choices"]:
            answers[choice["index"]].text += choice["text"]
            answers[choice["index"]].end = choice["finish_reason"]
    return answers


def fold_responses(told: Iterable[Any]) -> list[Said]:
    """/v1/responses: a stream's deltas, a whole answer's items."""
    said = Said()
    for event in told:
        if event.get("object") == "response":
            return [_response(event)]
        kind = event["type"]
        if kind == "response.output_text.delta":
            said.text += event["delta"]
        elif kind == "response.reasoning_text.delta":
            said.reasoning += event["delta"]
        elif kind == "response.output_item.added" and event["item"]["type"] == "function_call":
            said.calls.append([event["item"]["name"], ""])
        elif kind == "response.function_call_arguments.delta":
            said.calls[-1][1] += event["delta"]
        elif kind in {"response.completed", "response.incomplete", "response.cancelled"}:
            said.end = event["response"]["status"]
            assert _response(event["response"]) == said
    return [said]


def _response(told: Told) -> Said:
    said = Said(end=told["status"])
    for item in told["output"]:
        if item["type"] == "message":
            said.text += "".join(part["text"] for part in item["content"])
        elif item["type"] == "reasoning":
            said.reasoning += "".join(part["text"] for part in item["content"])
        else:
            said.calls.append([item["name"], item["arguments"]])
    return said


def fold_messages(told: Iterable[Any]) -> list[Said]:
    """/v1/messages."""
    said = Said()
    for event in told:
        if event["type"] == "message":
            for block in event["content"]:
                _block(said, block)
            said.end = event["stop_reason"]
        elif event["type"] == "content_block_start":
            _block(said, event["content_block"])
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            said.text += delta.get("text", "")
            said.reasoning += delta.get("thinking", "")
            if delta["type"] == "input_json_delta":
                said.calls[-1][1] += delta["partial_json"]
        elif event["type"] == "message_delta":
            said.end = event["delta"]["stop_reason"]
    said.calls = [[name, _same(arguments)] for name, arguments in said.calls]
    return [said]


def _block(said: Said, block: Told) -> None:
    said.text += block.get("text", "")
    said.reasoning += block.get("thinking", "")
    if block["type"] == "tool_use":
        said.calls.append([block["name"], json.dumps(block["input"]) if block["input"] else ""])


def fold_ollama(told: Iterable[Any]) -> list[Said]:
    """/api/chat and /api/generate."""
    said = Said()
    for line in told:
        part = line.get("message", line)
        said.text += part.get("content") or part.get("response") or ""
        said.reasoning += part.get("thinking") or ""
        for call in part.get("tool_calls", ()):
            function = call["function"]
            said.calls.append([function["name"], json.dumps(function["arguments"])])
        said.end = line.get("done_reason", said.end)
    return [said]


def fold_kobold(told: Iterable[Any]) -> list[Said]:
    """KoboldAI's two ways."""
    said = Said()
    for event in told:
        part = event["results"][0] if "results" in event else event
        said.text += part.get("text") or part.get("token") or ""
        said.end = part["finish_reason"]
    return [said]


def fold_llama(told: Iterable[Any]) -> list[Said]:
    """/completion."""
    said = Said()
    for event in told:
        said.text += event["content"]
        said.end = event.get("stop_type")
    return [said]


FOLDS: dict[str, Callable[[Iterable[Any]], list[Said]]] = {
    "openai-chat": fold_chat,
    "openai-completions": fold_completions,
    "openai-responses": fold_responses,
    "anthropic": fold_messages,
    "ollama-chat": fold_ollama,
    "ollama-generate": fold_ollama,
    "kobold": fold_kobold,
    "llama": fold_llama,
    "llama-infill": fold_llama,
}


def read(name: str, body: bytes, *, is_streamed: bool) -> list[Said]:
    """What an answer of that dialect says."""
    if not is_streamed:
        return FOLDS[name]([json.loads(body)])
    if name.startswith("ollama"):
        return FOLDS[name](map(json.loads, body.splitlines()))
    return FOLDS[name](event for event in events(body) if event != "[DONE]")


def _same(arguments: str) -> str:
    return json.dumps(json.loads(arguments or "{}"))
