"""The header reader: right about good files, and never taken in by a bad one."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import pytest
from gguf.constants import GGML_QUANT_SIZES, LlamaFileType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_files import ARRAY, STRING, UINT64, head, pair, small_model, tensor, text
from naiad.errors import ModelFileError
from naiad.models.gguf import BLOCKS, FILE_TYPES, is_gguf, read_header


def written(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return path


def complaint(tmp_path: Path, data: bytes) -> str:
    with pytest.raises(ModelFileError) as caught:
        read_header(written(tmp_path, data))
    return caught.value.message


def test_a_good_file_is_described(tmp_path: Path) -> None:
    header = read_header(written(tmp_path, small_model()))
    assert header.version == 3
    assert header.architecture == "llama"
    assert header.name == "Tiny"
    assert header.license == "mit"
    assert header.context_length == 2048
    assert header.quantisation == "Q8_0"
    assert header.has_chat_template
    assert (header.n_tensors, header.n_params) == (2, 128)
    assert header.metadata["tokenizer.ggml.tokens"] == 3
    assert header.metadata["tokenizer.ggml.token_type"] == 3
    assert header.data_end == len(small_model())


def test_what_the_file_does_not_say_is_empty(tmp_path: Path) -> None:
    header = read_header(written(tmp_path, head(0, 0)))
    assert (header.architecture, header.name, header.quantisation) == ("", "", "")
    assert header.context_length is None
    assert not header.has_chat_template


def test_values_of_the_wrong_type_count_as_not_said(tmp_path: Path) -> None:
    pairs = [pair("general.architecture", 5), pair("general.file_type", "x")]
    header = read_header(written(tmp_path, head(0, 2) + b"".join(pairs)))
    assert (header.architecture, header.quantisation) == ("", "")


def test_a_file_type_without_a_name_is_told_by_its_number(tmp_path: Path) -> None:
    data = head(0, 1) + pair("general.file_type", 999) + bytes(32)
    assert read_header(written(tmp_path, data)).quantisation == "type 999"


@pytest.mark.parametrize("cut", range(0, len(small_model()), 7))
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, cut: int) -> None:
    complaint(tmp_path, small_model()[:cut])


def test_a_file_cut_in_its_tensors_is_called_truncated(tmp_path: Path) -> None:
    whole = small_model()
    told = complaint(tmp_path, whole[:-1])
    assert "truncated" in told
    assert str(len(whole)) in told
    assert str(len(whole) - 1) in told


@pytest.mark.parametrize("data", [b"", b"GGU", b"\x7fELF" + bytes(60), b"GGML" + bytes(60)])
def test_a_foreign_file_is_refused(tmp_path: Path, data: bytes) -> None:
    assert "does not begin with the letters GGUF" in complaint(tmp_path, data)
    assert not is_gguf(tmp_path / "model.gguf")


@pytest.mark.parametrize("version", [0, 1, 4, 1 << 24])
def test_other_versions_are_refused(tmp_path: Path, version: int) -> None:
    assert f"version is {version}" in complaint(tmp_path, head(0, 0, version) + bytes(64))


HUGE = (1 << 64) - 1
HOSTILE = {
    "tensors": head(HUGE, 0) + bytes(64),
    "keys": head(0, HUGE) + bytes(64),
    "key length": head(0, 1) + struct.pack("<Q", HUGE) + bytes(64),
    "long key": head(0, 1) + struct.pack("<Q", 70_000) + bytes(80_000),
    "text length": head(0, 1) + text("k") + struct.pack("<IQ", STRING, HUGE) + bytes(64),
    "array length": head(0, 1) + text("k") + struct.pack("<IIQ", ARRAY, UINT64, HUGE) + bytes(64),
    "array of texts": head(0, 1) + text("k") + struct.pack("<IIQ", ARRAY, STRING, HUGE) + bytes(64),
    "array of arrays": head(0, 1) + text("k") + struct.pack("<IIQ", ARRAY, ARRAY, 1) + bytes(64),
    "value type": head(0, 1) + text("k") + struct.pack("<I", 77) + bytes(64),
    "element type": head(0, 1) + text("k") + struct.pack("<IIQ", ARRAY, 77, 1) + bytes(64),
    "dimensions": head(1, 0) + text("t") + struct.pack("<I", 1 << 31) + bytes(64),
    "tensor size": head(1, 0) + tensor("t", (HUGE, HUGE), 0, 0) + bytes(64),
    "tensor offset": head(1, 0) + tensor("t", (1,), 0, HUGE) + bytes(64),
    "alignment": head(1, 1) + pair("general.alignment", 0) + tensor("t", (1,), 0, 0) + bytes(64),
    "alignment text": head(1, 1)
    + pair("general.alignment", "32")
    + tensor("t", (1,), 0, 0)
    + bytes(64),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_count_or_length_is_believed(tmp_path: Path, data: bytes) -> None:
    path = written(tmp_path, data)
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(small_model()) - 1), value=st.integers(0, 255))
def test_any_byte_may_be_wrong(tmp_path: Path, place: int, value: int) -> None:
    data = bytearray(small_model())
    data[place] = value
    path = written(tmp_path, bytes(data))
    try:
        read_header(path)
    except ModelFileError as error:
        assert str(path) in error.message


def test_a_long_vocabulary_is_read_past(tmp_path: Path) -> None:
    tokens = [f"token {i:0100}" for i in range(12_000)]  # longer than one buffer
    pairs = pair("tokenizer.ggml.tokens", tokens) + pair("general.name", "after")
    header = read_header(written(tmp_path, head(0, 2) + pairs + bytes(32)))
    assert header.metadata["tokenizer.ggml.tokens"] == len(tokens)
    assert header.name == "after"


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"There is no model file .*none\.gguf"):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(ModelFileError, match="is a folder"):
        read_header(tmp_path)
    assert not is_gguf(tmp_path)
    assert not is_gguf(tmp_path / "none.gguf")


def test_the_block_sizes_are_those_of_the_format() -> None:
    known = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    assert {kind: known[kind] for kind in BLOCKS} == BLOCKS


def test_the_file_types_are_those_of_the_format() -> None:
    known = {int(kind): kind.name.split("_", 1)[-1] for kind in LlamaFileType}
    assert {kind: known[kind] for kind in FILE_TYPES} == FILE_TYPES


def test_the_reader_agrees_with_a_file_of_another_writer(watermark: Path) -> None:
    header = read_header(watermark)
    assert header.architecture == "llama"
    assert header.n_params > 0
    assert header.data_end <= watermark.stat().st_size
