"""langchain-openai and langchain-ollama: whole, streamed, together, tools, schemas, errors."""

from __future__ import annotations

import asyncio
import sys

import openai
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

URL, MODEL = sys.argv[1:]
ASK = "Name three colours."


PLACE = {
    "title": "Place",
    "description": "Where somebody lives.",
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"Rain in {city}."


def main() -> None:
    chat = ChatOpenAI(
        base_url=f"{URL}/v1", api_key="none", model=MODEL, temperature=0, seed=1, max_tokens=24
    )
    told = chat.invoke(ASK)
    assert told.content, told
    assert told.usage_metadata["input_tokens"] > 0, told.usage_metadata
    for _ in range(3):
        assert "".join(str(chunk.content) for chunk in chat.stream(ASK)), "an empty stream"
    together = asyncio.run(several(chat))
    assert all(together), together
    tooled = chat.bind_tools([get_weather], tool_choice="get_weather").invoke("Weather in Rome?")
    assert [call["name"] for call in tooled.tool_calls] == ["get_weather"], tooled
    place = ChatOpenAI(base_url=f"{URL}/v1", api_key="none", model=MODEL, temperature=0)
    found = place.with_structured_output(PLACE, method="json_schema").invoke("I live in Rome.")
    assert isinstance(found["city"], str), found
    # Without a tokenizer of its own for this model, it sends the texts themselves.
    embedder = OpenAIEmbeddings(
        base_url=f"{URL}/v1", api_key="none", model=MODEL, check_embedding_ctx_length=False
    )
    vectors = embedder.embed_documents(["red", "a long way home"])
    assert len(vectors) == 2 and len(vectors[0]) > 100, "vectors are missing"
    refused = ChatOpenAI(base_url=f"{URL}/v1", api_key="none", model=MODEL, max_retries=0)
    try:
        refused.invoke("word " * 20_000)
    except openai.BadRequestError as error:
        assert error.code == "context_length_exceeded", error
    else:
        raise AssertionError("a prompt that does not fit was accepted")
    ollama = ChatOllama(base_url=URL, model=MODEL, temperature=0, num_predict=16)
    assert ollama.invoke(ASK).content, "an empty answer"
    assert "".join(str(chunk.content) for chunk in ollama.stream(ASK)), "an empty stream"


async def several(chat: ChatOpenAI) -> list[str]:
    async def one(number: int) -> str:
        chunks = [chunk async for chunk in chat.astream(f"{ASK} ({number})")]
        return "".join(str(chunk.content) for chunk in chunks)

    return await asyncio.gather(*map(one, range(4)))


main()
