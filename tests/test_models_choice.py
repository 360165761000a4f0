"""Which file of a repository to take, where other programs keep models, what a model costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_files import head, pair, tensor
from naiad.errors import ModelFileError
from naiad.models.catalogue import find, installed, named, parts_of
from naiad.models.cost import Cost, cost_of
from naiad.models.gguf import MAX_KEPT, read_header
from naiad.models.places import HUB, LM_STUDIO, Place, hub_cache, places
from naiad.models.quants import RepoFile, Variant, choose, propose, quant_of, variants

GIB = 1 << 30


# --- quantisations


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("Qwen3-4B-Q4_K_M.gguf", "Q4_K_M"),
        ("model.q8_0.gguf", "Q8_0"),
        ("m-IQ3_XXS.gguf", "IQ3_XXS"),
        ("m-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("gpt-oss-20b-MXFP4.gguf", "MXFP4"),
        ("m-BF16-00001-of-00002.gguf", "BF16"),
        ("m.f16.gguf", "F16"),
        ("bitnet-TQ1_0.gguf", "TQ1_0"),
        ("Q8_0/m-of-Q4_0.gguf", "Q4_0"),
        ("model.gguf", ""),
        ("FAQ4_you.gguf", ""),
    ],
)
def test_a_name_tells_the_quantisation(name: str, quant: str) -> None:
    assert quant_of(name) == quant


def test_a_repositorys_files_become_models() -> None:
    names = ("a-Q8_0.gguf", "a-Q2_K.gguf", "mmproj-a.gguf", "imatrix.gguf", "README.md")
    parts = [RepoFile(f"big/a-F16-0000{n}-of-00002.gguf", 50) for n in (2, 1)]
    lonely = RepoFile("a-Q6_K-00001-of-00003.gguf", 9)
    files = [RepoFile(name, 20 - i) for i, name in enumerate(names)]
    found = variants([*files, *parts, lonely])
    assert [(v.quant, v.n_bytes) for v in found] == [("Q2_K", 19), ("Q8_0", 20), ("F16", 100)]
    assert found[-1].name == "big/a-F16-00001-of-00002.gguf"


def sizes(**of: float) -> list[Variant]:
    made = [Variant(q, (RepoFile(f"m-{q}.gguf", int(n * GIB)),)) for q, n in of.items()]
    return sorted(made, key=lambda variant: variant.n_bytes)


def test_four_bits_are_proposed_where_they_fit() -> None:
    found = sizes(Q2_K=3, Q4_K_M=5, Q8_0=9, F16=17)
    proposal = propose(found, 64 * GIB)
    assert proposal.variant.quant == "Q4_K_M"
    assert (
        proposal.reason
        == "four bits: little loss, little memory; 48.0 GiB of memory can hold weights here"
    )
    assert propose(sizes(Q4_0=4, IQ4_XS=4.2), 64 * GIB).variant.quant == "IQ4_XS"


def test_else_the_largest_that_fits_and_else_the_smallest() -> None:
    found = sizes(Q2_K=3, Q3_K_S=4, Q4_K_M=5, F16=17)
    proposal = propose(found, 6 * GIB)
    assert (proposal.variant.quant, "largest" in proposal.reason) == ("Q3_K_S", True)
    proposal = propose(found, GIB)
    assert (proposal.variant.quant, "too large" in proposal.reason) == ("Q2_K", True)
    assert propose(sizes(F16=1, BF16=2), 64 * GIB).variant.quant == "BF16"
    assert propose(sizes(Q5_K_M=1, F16=2), 64 * GIB).variant.quant == "Q5_K_M"
    for free, told in ((64 * GIB, "it fits"), (1, "it does not fit")):
        assert told in propose(sizes(Q8_0=1), free).reason


def test_one_is_chosen_by_quantisation_or_file() -> None:
    found = sizes(**{"Q8_0": 1, "UD-Q4_K_XL": 2})
    for wanted in ("q8_0", "m-Q8_0.gguf", "Q8_0"):
        assert choose(found, wanted).quant == "Q8_0"
    assert choose(found, "q4_k_xl").quant == "UD-Q4_K_XL"
    with pytest.raises(ModelFileError, match="there is: Q8_0, UD-Q4_K_XL"):
        choose(found, "Q4_0")


# --- places


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a model in LM Studio's folder, one in the hub's cache, one in a folder named."""
    for name in (
        ".lmstudio/models/maker/repo/Studio-Q4_0.gguf",
        ".cache/huggingface/hub/models--a--b-GGUF/snapshots/old/Hub-Q8_0.gguf",
        ".cache/huggingface/hub/models--a--b-GGUF/snapshots/new/sub/mmproj-x.gguf",
        ".cache/huggingface/hub/models--a--b-GGUF/snapshots/new/readme.md",
        "more/deep/er/Named.gguf",
        "more/too/deep/to/be/Seen.gguf",
        "models/Own.gguf",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    return tmp_path


def test_models_of_other_programs_are_found_where_they_lie(home: Path) -> None:
    env = {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
    there = places([str(home / "more")], env=env)
    assert [place.title for place in there] == ["", LM_STUDIO, HUB]
    found = installed(home / "models", there)
    assert [(m.name, m.place, m.repo) for m in found] == [
        ("Own", "", ""),
        ("Named", "", "deep/er"),
        ("Studio-Q4_0", LM_STUDIO, "maker/repo"),
        ("Hub-Q8_0", HUB, "a/b-GGUF"),
    ]
    for name in ("hub-q8_0", "A/B-GGUF", "a/b-gguf:Q8_0", "hf:a/b-GGUF:Hub-Q8_0.gguf"):
        assert named(name, home / "models", there) == found[-1].path
    assert places(foreign=False, env=env) == ()
    assert places(env={"HOME": str(home / "none")}) == ()


def test_the_same_file_is_one_model(home: Path) -> None:
    link = home / "models" / "Linked.gguf"
    link.symlink_to(home / "more" / "deep" / "er" / "Named.gguf")
    names = [m.name for m in installed(home / "models", [Place(home / "more")])]
    assert names == ["Linked", "Own"]


def test_the_hubs_cache_is_where_its_variables_say() -> None:
    assert hub_cache({"HF_HUB_CACHE": "/x"}) == Path("/x")
    assert hub_cache({"HF_HOME": "/y"}) == Path("/y/hub")
    assert hub_cache({"XDG_CACHE_HOME": "/z"}) == Path("/z/huggingface/hub")


def test_what_is_not_here_yet_says_how_to_get_it(home: Path) -> None:
    with pytest.raises(ModelFileError, match="fetch it with: naiad pull hf:c/d"):
        find("hf:c/d", home / "models")
    with pytest.raises(ModelFileError, match=r"Did you mean Own\?"):
        find("Owm", home / "models")


def test_a_folder_that_may_not_be_read_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert installed(tmp_path, [Place(tmp_path / "file"), Place(tmp_path / "none", HUB)]) == []


def test_parts_are_counted_by_name() -> None:
    assert parts_of(Path("/m/a.gguf")) == [Path("/m/a.gguf")]
    first = Path("/m/a-00001-of-00003.gguf")
    assert [path.name for path in parts_of(first)] == [
        f"a-0000{n}-of-00003.gguf" for n in (1, 2, 3)
    ]


# --- costs


def a_model(path: Path, *pairs: bytes, experts: int = 0) -> Path:
    told = [pair("general.architecture", "llama"), *pairs]
    tensors = [tensor("blk.0.ffn_up_exps.weight", (experts,), 0, 0)] if experts else []
    header = head(len(tensors), len(told)) + b"".join(told) + b"".join(tensors)
    path.write_bytes(header + bytes(-len(header) % 32) + bytes(4 * experts))
    return path


def cost(path: Path) -> Cost:
    return cost_of(read_header(path), path.stat().st_size)


PLAIN = (
    pair("llama.block_count", 30),
    pair("llama.embedding_length", 576),
    pair("llama.attention.head_count", 9),
    pair("llama.attention.head_count_kv", 3),
    pair("llama.context_length", 8192),
)


def test_a_cell_is_keys_and_values_of_each_layer(tmp_path: Path) -> None:
    told = cost(a_model(tmp_path / "a.gguf", *PLAIN))
    assert told.kv_values == 30 * 3 * (64 + 64)
    assert told.bytes_per_cell("f16") == 30 * 3 * 128 * 2
    assert told.bytes_per_cell("q8_0") == 30 * 3 * 128 * 34 // 32
    assert (told.n_head, told.n_ctx_train, told.has_window) == (9, 8192, False)


def test_heads_may_differ_by_layer_and_have_lengths_of_their_own(tmp_path: Path) -> None:
    lengths = (pair("llama.attention.key_length", 128), pair("llama.attention.value_length", 64))
    per_layer = pair("llama.attention.head_count_kv", [2, 0, 1])
    told = cost(a_model(tmp_path / "a.gguf", PLAIN[1], PLAIN[2], *lengths, per_layer,
                        pair("llama.block_count", 3)))  # fmt: skip
    assert told.kv_values == 3 * (128 + 64)


def test_a_mixture_reads_only_the_experts_it_uses(tmp_path: Path) -> None:
    of_experts = (pair("llama.expert_count", 8), pair("llama.expert_used_count", 2))
    path = a_model(tmp_path / "a.gguf", *PLAIN, *of_experts, experts=1000)
    told = cost(path)
    assert told.token_bytes == path.stat().st_size - 3000


def test_a_file_that_does_not_tell_its_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="how many layers"):
        cost(a_model(tmp_path / "a.gguf"))


def test_only_short_arrays_of_integers_are_kept(tmp_path: Path) -> None:
    long = pair("llama.long", [1] * (MAX_KEPT + 1))
    tokens = pair("tokenizer.types", [1, 2])
    header = read_header(a_model(tmp_path / "a.gguf", pair("llama.a", [3, 4]), long, tokens))
    assert header.arrays == {"llama.a": (3, 4)}
    assert header.metadata["llama.long"] == MAX_KEPT + 1
