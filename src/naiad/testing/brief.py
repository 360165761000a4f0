"""The brief model: whatever a chat says, it answers with the same few characters, and ends.

It is for programs that hold conversations, such as coding agents, whose prompts are long. Every
token but the answer's own has one and the same code, and the answer begins behind that code: so it
begins behind any prompt, which the chat template ends with other tokens than the answer's. From
there each character leads to the next one, and the last to the end. Attention is computed over
everything and thrown away; it is narrow, or a prompt of 80,000 tokens would take minutes.
"""

from __future__ import annotations

from pathlib import Path

from naiad.testing.exact_models import (
    FIRST_CHARACTER,
    N_CHANNELS,
    RIGHT_LOGIT,
    SPECIAL,
    Weights,
    character,
    unit_codes,
    write_model,
)

N_ANSWER = 12
#: The answer to everything.
BRIEF_TEXT = "".join(character(n) for n in range(N_ANSWER))
BRIEF_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
_ATTENTION_SIZE = 32
_END = SPECIAL.index("</s>")


def build_brief(path: Path) -> Path:
    """Write the brief model to `path` and return it. Deterministic; 9 MB; needs `gguf`."""
    import numpy as np

    codes = unit_codes(N_CHANNELS)
    answer = slice(FIRST_CHARACTER, FIRST_CHARACTER + N_ANSWER)
    embedding = np.tile(codes[0], (len(codes), 1))
    embedding[answer] = codes[answer]
    output = np.zeros_like(codes)
    output[answer] = np.concatenate([codes[:1], codes[answer][:-1]])
    output[_END] = codes[answer][-1]
    output *= np.float32(RIGHT_LOGIT / N_CHANNELS**0.5)
    random = np.random.default_rng(9).standard_normal((_ATTENTION_SIZE, N_CHANNELS))
    mixing = random.astype(np.float32) * np.float32(0.02)
    nothing = np.zeros((N_CHANNELS, _ATTENTION_SIZE), np.float32)
    weights = Weights(embedding, output, mixing, mixing, mixing, nothing, n_heads=1)
    write_model(path, "brief", weights, template=BRIEF_TEMPLATE)
    return path
