"""The exact models' builders and their oracles, without an engine."""

from __future__ import annotations

import hashlib
from pathlib import Path

import gguf
import numpy as np
import pytest

from naiad.errors import InvalidRequest
from naiad.testing import brief, exact_models, lookback, watermark
from naiad.testing.exact_models import N_CHARACTERS, character, place, successor, token_id


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_characters_form_a_cycle() -> None:
    assert character(0) == "\u4e00"
    assert character(N_CHARACTERS) == character(0)
    assert [place(character(n)) for n in (0, 1, N_CHARACTERS - 1)] == [0, 1, N_CHARACTERS - 1]
    assert successor(character(N_CHARACTERS - 1)) == character(0)
    assert len(character(7).encode()) == 3
    assert token_id(character(0)) == 259


@pytest.mark.parametrize("text", ["a", "\u4dff", chr(0x4E00 + N_CHARACTERS)])
def test_other_characters_have_no_place(text: str) -> None:
    with pytest.raises(ValueError, match="no character of the exact models"):
        place(text)


def test_watermark_text_goes_on_after_the_last_character() -> None:
    assert watermark.watermark_text(5, 3) == character(6) + character(7) + character(8)
    assert watermark.watermark_text(N_CHARACTERS - 1, 1) == character(0)
    assert watermark.watermark_text(3, 0) == ""


def test_lookback_text_follows_the_character_k_places_back() -> None:
    prompt = "".join(character(n) for n in (10, 20, 30, 40))
    answer = lookback.lookback_text(prompt, 5, back=3)
    assert [place(c) for c in answer] == [11, 21, 31, 41, 12]


def test_lookback_text_of_distance_one_reads_the_last_but_one() -> None:
    assert lookback.lookback_text(character(1) + character(9), 2, back=1) == character(
        2
    ) + character(10)


def test_lookback_needs_a_prompt_longer_than_its_distance() -> None:
    with pytest.raises(ValueError, match="longer than 40 characters, this one has 40"):
        lookback.lookback_text(character(1) * 40, 1)


@pytest.mark.parametrize("back", [0, 2001])
def test_lookback_distance_has_a_range(tmp_path: Path, back: int) -> None:
    with pytest.raises(ValueError, match="1 to 2000"):
        lookback.build_lookback(tmp_path / "x.gguf", back)


def test_building_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first = watermark.build_watermark(tmp_path / "a.gguf")
    second = watermark.build_watermark(tmp_path / "b.gguf")
    assert digest(first) == digest(second)
    assert digest(lookback.build_lookback(tmp_path / "c.gguf")) == digest(
        lookback.build_lookback(tmp_path / "d.gguf")
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "b.gguf", "c.gguf", "d.gguf"]


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(lookback.build_lookback(tmp_path / "m.gguf", 40))
    assert reader.fields["general.name"].contents() == "lookback-40"
    assert reader.fields["llama.rope.freq_base"].contents() == 200.0
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert tokens[:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert tokens[token_id(character(77))] == character(77)
    assert len(tokens) == 4096
    assert {t.name for t in reader.tensors} >= {"token_embd.weight", "blk.0.attn_q.weight"}


def test_the_watermark_throws_attention_away(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(watermark.build_watermark(tmp_path / "m.gguf"))
    tensors = {t.name: t.data for t in reader.tensors}
    assert not tensors["blk.0.attn_output.weight"].any()
    assert not tensors["blk.0.ffn_down.weight"].any()
    assert tensors["blk.0.attn_v.weight"].any()


def test_the_right_token_stands_out_whatever_the_last_one_was() -> None:
    codes = exact_models.unit_codes(exact_models.N_CHANNELS)
    rows = exact_models.successor_rows(codes)
    some = np.arange(exact_models.FIRST_CHARACTER, exact_models.N_VOCAB, 37)
    logits = rows @ (codes[some].T * exact_models.N_CHANNELS**0.5)
    ranked = np.sort(logits, axis=0)
    characters = exact_models.FIRST_CHARACTER
    expected = characters + (some - characters + 1) % N_CHARACTERS
    assert (np.argmax(logits, axis=0) == expected).all()
    assert (ranked[-1] - ranked[-2]).min() > 20.0


def test_the_brief_model_has_one_way_to_its_end_from_anywhere(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(brief.build_brief(tmp_path / "m.gguf"))
    tensors = {t.name: t.data for t in reader.tensors}
    assert reader.fields["llama.attention.key_length"].contents() == 32
    rows, codes = tensors["output.weight"], tensors["token_embd.weight"]
    best = np.argmax(rows @ (codes.T * exact_models.N_CHANNELS**0.5), axis=0)
    first = exact_models.FIRST_CHARACTER
    ends = [*range(first + 1, first + brief.N_ANSWER), 2]  # 2: </s>
    assert best[first : first + brief.N_ANSWER].tolist() == ends
    others = np.delete(best, np.s_[first : first + brief.N_ANSWER])
    assert (others == first).all()


def test_a_model_is_built_once(tmp_path: Path) -> None:
    built = exact_models.exact_model("lookback-7", tmp_path / "cache")
    stamp = built.stat().st_mtime_ns
    assert exact_models.exact_model("lookback-7", tmp_path / "cache") == built
    assert built.stat().st_mtime_ns == stamp
    assert gguf.GGUFReader(built).fields["general.name"].contents() == "lookback-7"


def test_the_default_distance_is_forty(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(exact_models.exact_model("lookback", tmp_path))
    assert reader.fields["general.name"].contents() == "lookback-40"
    watermarked = gguf.GGUFReader(exact_models.exact_model("watermark", tmp_path))
    assert watermarked.fields["general.name"].contents() == "watermark"


@pytest.mark.parametrize("name", ["gemma", "lookback-x", "lookbackward", ""])
def test_unknown_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="no exact model is named"):
        exact_models.exact_model(name, tmp_path)
