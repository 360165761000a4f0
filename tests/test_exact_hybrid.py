"""The hybrid exact model: its rule, and that the engine says nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from naiad.native.model import Model
from naiad.testing.exact_models import character, exact_model, place
from naiad.testing.recurrent import COLUMN_BACK, N_COLUMNS, N_PAIRS, ROW_BACK, hybrid_text

PROMPT = "".join(character(37 * i % N_PAIRS) for i in range(COLUMN_BACK + 1))


def test_an_answer_is_made_of_two_characters() -> None:
    first = place(hybrid_text(PROMPT, 1))
    assert first // N_COLUMNS == place(PROMPT[-1 - ROW_BACK]) // N_COLUMNS + 1
    assert first % N_COLUMNS == place(PROMPT[-1 - COLUMN_BACK]) % N_COLUMNS + 1
    assert len(hybrid_text(PROMPT, 200)) == 200
    assert max(map(place, hybrid_text(PROMPT, 200))) < N_PAIRS


@pytest.mark.parametrize("prompt", [PROMPT[1:], PROMPT + character(N_PAIRS)])
def test_prompts_it_cannot_answer_are_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="first 3776 characters"):
        hybrid_text(prompt, 1)


@pytest.mark.engine
def test_its_past_cannot_be_cut_and_it_is_built_alike_each_time(
    hybrid: Path, tmp_path: Path
) -> None:
    assert exact_model("hybrid", tmp_path).read_bytes() == hybrid.read_bytes()
    model = Model(hybrid)
    assert not model.can_cut
    model.close()
