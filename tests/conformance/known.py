"""What suites ask for and naiad does not do, with the reason; everything else must pass.

A reason is one of three: the model cannot (it has no eyes, it is too small to follow), the suite
contradicts the API's own documentation, or naiad decided otherwise and says why.
"""

from __future__ import annotations

_NO_EYES = "the model reads text only, and images are refused"
_NO_MODEL = "a local server runs one model, so a request need not name it"
_TIES = (
    "a prompt that comes from the cache, and text that was guessed, are computed in other batches, "
    "whose last bits differ; a model this small has near ties everywhere. Requests with "
    "'deterministic' are exact, but the suite cannot ask for that"
)
_CALLS_AGAIN = "the model calls the tool again instead of saying anything, which is an answer too"

#: suite -> test or assertion -> why it does not apply
KNOWN: dict[str, dict[str, str]] = {
    "llmprobe": {
        "chat-seed-deterministic": _TIES,
        "chat-top-p-not-ignored": _TIES,
        "responses-top-p-not-ignored": _TIES,
        "messages-top-p-not-ignored": _TIES,
        "messages-top-k-honored": _TIES,
        "chat-tool-result-continues": _CALLS_AGAIN,
        "responses-tool-result-continues": _CALLS_AGAIN,
        "messages-tool-result-continues": _CALLS_AGAIN,
        "responses-chain-remembers": "the model was told the name, and does not say it again; "
        "that the conversation is passed on has a test of its own",
        "messages-usage-cached-bound": "Anthropic's input_tokens do not hold the cached ones",
        "messages-stop-reason": "the suite takes the model's 'Beta' for its stop string 'beta'",
    },
    "llm-comply openai-chat": {
        "chat-image-input": _NO_EYES,
        "chat-error-handling": _NO_MODEL,
    },
    "llm-comply open-responses": {
        "image-input": _NO_EYES,
        "error-handling": _NO_MODEL,
    },
    "llm-comply anthropic": {
        "anth-image-input": _NO_EYES,
    },
}

#: What a test of llm-comply says of an answer that was cut off. None sets a limit, so that is a
#: model that talked until the context was full, which one this small does now and then, in any.
RAN_ON = "expected status='completed', got 'incomplete'"


def reason_for(suite: str, name: str, told: str) -> str | None:
    """Why that failure is none; None if it is one."""
    ran_on = "the model talked until the context was full" if told == RAN_ON else None
    return KNOWN[suite].get(name) or ran_on
