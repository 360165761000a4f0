"""Several answers to one body, and what a body can ask for around an answer."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from naiad.dialects.fields import Fields, boolean, integer, text
from naiad.errors import InvalidRequest, Unsupported
from naiad.types import GenerateRequest, ModelInfo, Prompt, TextPrompt, TokenPrompt

#: Choices of one prompt, and of all prompts of a body together.
MAX_N = 16
MAX_CHOICES = 64


def read_n(fields: Fields, n_prompts: int) -> int:
    """`n`, 1 to 16. `best_of` must ask for nothing more. Raises InvalidRequest, Unsupported."""
    n = fields.get(integer(0, MAX_N), "n") or 1  # some front ends send 0 for the default
    best_of = fields.get(integer(0), "best_of") or 1
    if best_of > n:
        raise Unsupported(
            f"'best_of' is not supported: nothing is generated that is not sent. Ask for 'n' "
            f"answers, up to {MAX_N}, and choose among them.",
            param="best_of",
        )
    if n * n_prompts > MAX_CHOICES:
        raise InvalidRequest(
            f"'n' is {n} for each of {n_prompts} prompts; one request may ask for at most "
            f"{MAX_CHOICES} answers in all.",
            param="n",
        )
    return n


def refuse_text_fields(fields: Fields) -> None:
    """`echo` and `suffix` are fields of completions; in a chat they would change its meaning."""
    asked = {"echo": fields.get(boolean, "echo"), "suffix": fields.get(text, "suffix")}
    for name, is_asked in asked.items():
        if is_asked:
            raise Unsupported(
                f"'{name}' is not supported in chats, only by completions.", param=name
            )


def each_choice(
    request: GenerateRequest, prompts: Sequence[Prompt], n: int
) -> list[GenerateRequest]:
    """A request for each choice: those of the first prompt, then those of the next.

    The choices of a prompt have draws of their own under the one seed of the body.
    """
    handle = request.handle
    if handle is None and n * len(prompts) > 1:
        handle = secrets.token_hex(16)  # or one hang-up would count as many; see service.registry
    return [
        replace(
            request,
            prompt=prompt,
            handle=handle,
            sampling=msgspec.structs.replace(request.sampling, choice=choice),
        )
        for prompt in prompts
        for choice in range(n)
    ]


def with_suffix(
    fields: Fields, prompts: Sequence[TextPrompt | TokenPrompt], model: ModelInfo
) -> Sequence[Prompt]:
    """`suffix`: the answer stands between the prompt and this text, for models made for that."""
    suffix = fields.get(text, "suffix")
    if not suffix:
        return prompts
    if fields.get(boolean, "echo"):
        raise Unsupported("'suffix' is not supported together with 'echo'.", param="suffix")
    if model.infill is None:
        raise Unsupported(
            f"'suffix' is not supported by {model.name!a}: it has no tokens for filling in text.",
            param="suffix",
        )
    if not all(isinstance(prompt, TextPrompt) for prompt in prompts):
        raise Unsupported("'suffix' needs a 'prompt' that is text, not token ids.", param="suffix")
    before, behind, middle = model.infill
    return [
        TextPrompt(f"{before}{prompt.text}{behind}{suffix}{middle}")
        for prompt in prompts
        if isinstance(prompt, TextPrompt)
    ]
