"""What suites ask for and naiad does not do, with the reason; everything else must pass.

A reason is one of three: the model cannot (it has no eyes, it is too small to follow), the suite
contradicts the API's own documentation, or naiad decided otherwise and says why.
"""

from __future__ import annotations

_NO_EYES = "the model reads text only, and images are refused"
_NO_MODEL = "a local server runs one model, so a request need not name it"
_SMALL = "the model is too small to do what is asked; nothing about the protocol is seen"
_THINKING = "the suite asks this of models by certain names only"

#: suite -> test or assertion -> why it does not apply
KNOWN: dict[str, dict[str, str]] = {
    "llmprobe": {
        "chat-seed-deterministic": "a prompt taken from the cache is computed in other batches, "
        "whose last bits differ; a model this small has near ties everywhere",
        "messages-usage-cached-bound": "Anthropic's input_tokens do not hold the cached ones",
        "messages-stop-reason": _SMALL,
        "messages-tool-result-continues": _SMALL,
        "chat-tool-result-continues": _SMALL,
    },
    "llm-comply openai-chat": {
        "chat-image-input": _NO_EYES,
        "chat-error-handling": _NO_MODEL,
        "chat-reasoning-summary": _THINKING,
    },
    "llm-comply open-responses": {
        "image-input": _NO_EYES,
        "error-handling": _NO_MODEL,
        "reasoning-summary": _THINKING,
    },
    "llm-comply anthropic": {
        "anth-image-input": _NO_EYES,
        "anth-thinking-display": _THINKING,
        "anth-error-handling": _NO_MODEL,
    },
}
