"""The hybrid and the recurrent exact model: their rules, and that the engine says nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from naiad.native.model import Model
from naiad.testing.exact_models import character, exact_model, place
from naiad.testing.recurrent import (
    COLUMN_BACK,
    N_COLUMNS,
    N_PAIRS,
    ROW_BACK,
    hybrid_text,
    recurrent_text,
)

PROMPT = "".join(character(37 * i % N_PAIRS) for i in range(COLUMN_BACK + 1))


def test_an_answer_is_made_of_two_characters() -> None:
    first = place(hybrid_text(PROMPT, 1))
    assert first // N_COLUMNS == place(PROMPT[-1 - ROW_BACK]) // N_COLUMNS + 1
    assert first % N_COLUMNS == place(PROMPT[-1 - COLUMN_BACK]) % N_COLUMNS + 1
    assert len(hybrid_text(PROMPT, 200)) == 200
    assert max(map(place, hybrid_text(PROMPT, 200))) < N_PAIRS


def test_the_recurrent_one_takes_both_from_one_character() -> None:
    said = place(recurrent_text(PROMPT, 1))
    row, column = divmod(place(PROMPT[-1 - ROW_BACK]), N_COLUMNS)
    assert said == (row + 1) * N_COLUMNS + (column + 1) % N_COLUMNS
    with pytest.raises(ValueError, match=f"more than {ROW_BACK} of the first"):
        recurrent_text(PROMPT[:ROW_BACK], 1)


@pytest.mark.parametrize("prompt", [PROMPT[1:], PROMPT + character(N_PAIRS)])
def test_prompts_it_cannot_answer_are_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="first 3776 characters"):
        hybrid_text(prompt, 1)


@pytest.mark.engine
@pytest.mark.parametrize("name", ["hybrid", "recurrent"])
def test_its_past_cannot_be_cut_and_it_is_built_alike_each_time(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(name)
    assert exact_model(name, tmp_path).read_bytes() == path.read_bytes()
    model = Model(path)
    assert not model.can_cut
    model.close()
