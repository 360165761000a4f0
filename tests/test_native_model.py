"""Models, vocabularies and sampler chains, on tiny models in the real engine."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from naiad.errors import InvalidRequest, ModelFileError
from naiad.native.model import Model
from naiad.native.sampler import Candidates, SamplerChain
from naiad.native.vocab import Vocab
from naiad.testing.exact_models import N_VOCAB, character, token_id

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def model(watermark: Path) -> Iterator[Model]:
    model = Model(watermark)
    yield model
    model.close()


@pytest.fixture(scope="module")
def vocab(model: Model) -> Vocab:
    return model.vocab


# -- models -----------------------------------------------------------------------------------


def test_a_model_tells_its_shape(model: Model) -> None:
    assert (model.n_layer, model.n_head, model.n_embd, model.n_swa) == (1, 4, 256, 0)
    assert model.n_ctx_train == 32768
    assert model.n_params > 2 * N_VOCAB * 256
    assert model.size_bytes > model.n_params
    assert model.can_cut
    assert model.can_generate
    assert model.description
    assert model.vocab is model.vocab


def test_metadata_is_text_or_nothing(model: Model) -> None:
    assert model.metadata("general.architecture") == "llama"
    assert model.metadata("llama.block_count") == "1"
    assert model.metadata("no.such.key") is None


def test_a_cell_holds_a_key_and_a_value_for_each_layer(model: Model) -> None:
    assert model.kv_bytes_per_cell(2.0) == 1 * 4 * (64 + 64) * 2
    assert model.kv_bytes_per_cell(34 / 32) == 544


def test_loading_reports_its_progress_to_the_end(watermark: Path) -> None:
    seen: list[float] = []
    model = Model(watermark, on_progress=seen.append)
    model.close()
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert model.handle is None


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    with pytest.raises(ModelFileError, match=r"cannot read the model file .*odd\.gguf"):
        Model(path)
    path.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(ModelFileError, match=r"cannot load odd\.gguf: .+"):
        Model(path)


# -- vocabularies -----------------------------------------------------------------------------


def test_special_tokens(vocab: Vocab) -> None:
    assert vocab.n_tokens == N_VOCAB
    assert (vocab.bos, vocab.eos) == (1, 2)
    assert vocab.add_bos
    assert vocab.eos in vocab.eog
    assert vocab.text_of(vocab.bos) == "<s>"
    assert vocab.text_of(-1) == ""


def test_control_tokens_are_silent_unless_asked_for(vocab: Vocab) -> None:
    ids = [vocab.bos, token_id("一"), vocab.eos]
    assert vocab.decode(ids, special=False) == "一".encode()
    assert vocab.decode(ids, special=True) == "<s>一</s>".encode()
    assert vocab.piece(vocab.eos) == b""


def test_special_text_is_one_token_only_when_it_may_be(vocab: Vocab) -> None:
    parsed = vocab.encode("一</s>", add_special=False, parse_special=True)
    assert parsed == [token_id("一"), vocab.eos]
    literal = vocab.encode("一</s>", add_special=False, parse_special=False)
    assert vocab.eos not in literal
    assert vocab.decode(literal, special=False) == "一</s>".encode()


def test_bos_comes_once_at_most_and_only_when_asked_for(vocab: Vocab) -> None:
    for text in ("一", "<s>一"):
        ids = vocab.encode(text, add_special=True, parse_special=True)
        assert ids == [vocab.bos, token_id("一")]
    assert vocab.encode("一", add_special=False, parse_special=True) == [token_id("一")]
    twice = vocab.encode("<s><s>一", add_special=False, parse_special=True)
    assert twice.count(vocab.bos) == 2  # somebody wrote them: they stay
    assert vocab.encode("", add_special=True, parse_special=True) == [vocab.bos]


@settings(max_examples=60, derandomize=True)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters=" "), max_size=60))
def test_any_text_comes_back(vocab: Vocab, text: str) -> None:
    """All but the space, which this kind of vocabulary spells with a sign that ours lacks."""
    ids = vocab.encode(text, add_special=True, parse_special=False)
    assert vocab.decode(ids, special=False).decode() == text


def test_a_lone_surrogate_is_no_crash(vocab: Vocab) -> None:
    ids = vocab.encode("一\ud800丁", add_special=False, parse_special=True)
    assert vocab.decode(ids, special=False).decode() == "一?丁"


def test_long_text_of_many_tokens_fits(vocab: Vocab) -> None:
    """One token for each byte: more than the first guess makes room for."""
    text = "\x01" * 5000 + character(5)
    ids = vocab.encode(text, add_special=False, parse_special=True)
    assert len(ids) == 5001
    assert vocab.decode(ids, special=False).decode() == text


@pytest.mark.parametrize("token", [-1, N_VOCAB, 2**31])
def test_ids_outside_are_refused_before_the_library_sees_them(vocab: Vocab, token: int) -> None:
    with pytest.raises(InvalidRequest, match=f"0 to {N_VOCAB - 1}"):
        vocab.decode([5, token], special=True)


def test_two_threads_read_the_same(vocab: Vocab) -> None:
    text = "".join(character(i * 37) for i in range(400))
    want = vocab.encode(text, add_special=True, parse_special=True)
    got: list[tuple[list[int], bytes]] = []

    def work() -> None:
        for _ in range(10):
            ids = vocab.encode(text, add_special=True, parse_special=True)
            got.append((ids, vocab.decode(ids, special=False)))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [(want, text.encode())] * 30


def test_a_vocabulary_keeps_its_model(watermark: Path) -> None:
    vocab = Model(watermark).vocab
    gc.collect()
    assert vocab.piece(token_id("丁")) == "丁".encode()


# -- chains -----------------------------------------------------------------------------------


def test_candidates_are_used_again_without_a_trace() -> None:
    candidates, chain = Candidates(50), SamplerChain()
    chain.add_top_k(3)
    first = np.arange(50, dtype=np.float32)
    candidates.fill(first)
    assert sorted(candidates.apply(chain)["id"]) == [47, 48, 49]
    candidates.fill(-first)
    assert sorted(candidates.apply(chain)["id"]) == [0, 1, 2]
    chain.close()


def test_an_empty_chain_leaves_everything_in_order() -> None:
    candidates, chain = Candidates(9), SamplerChain()
    logits = np.linspace(3, -3, 9, dtype=np.float32)
    candidates.fill(logits)
    rows = candidates.apply(chain)
    assert rows["id"].tolist() == list(range(9))
    assert np.array_equal(rows["logit"], logits)
    chain.close()


def test_stages_run_in_the_order_they_were_added() -> None:
    logits = np.array([1.0, 0.9, 0.0], np.float32)
    left = []
    for stages in (("cut", "bias"), ("bias", "cut")):
        candidates, chain = Candidates(3), SamplerChain()
        for stage in stages:
            if stage == "cut":
                chain.add_top_k(1)
            else:
                chain.add_logit_bias(3, [(2, 5.0)])
        candidates.fill(logits)
        left.append(candidates.apply(chain)["id"].tolist())
        chain.close()
    assert left == [[0], [2]]


def test_each_chain_remembers_its_own_tokens() -> None:
    logits = np.array([1.0, 0.9], np.float32)
    chains = [SamplerChain() for _ in range(2)]
    for chain in chains:
        chain.add_penalties(2, 8, 1.0, 0.0, 0.5)
    chains[0].accept(0)
    candidates = Candidates(2)
    best = []
    for chain in chains:
        candidates.fill(logits)
        rows = candidates.apply(chain)
        best.append(int(rows["id"][rows["logit"].argmax()]))
        chain.close()
        chain.close()
    assert best == [1, 0]


def test_a_stage_that_leaves_our_array_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later library might hand back an array of its own; reading ours would be wrong tokens."""
    candidates, chain = Candidates(9), SamplerChain()
    candidates.fill(np.zeros(9, np.float32))
    other = Candidates(9)
    other.fill(np.zeros(9, np.float32))
    candidates._native.data = other._native.data
    with pytest.raises(AssertionError, match="left our array"):
        candidates.apply(chain)
    chain.close()
