"""The real models, where they are installed: what the reader and the doctor make of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from naiad.cli.doctor import self_test
from naiad.config import Config
from naiad.errors import ModelFileError
from naiad.models.catalogue import find, models_dir
from naiad.models.gguf import GgufHeader, read_header
from naiad.models.sources import SOURCES, Source


def the_file(source: Source) -> Path:
    try:
        return find(source.name, models_dir())
    except ModelFileError as error:
        pytest.skip(error.message)


@pytest.mark.model
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
def test_the_pinned_digest_is_that_of_the_installed_file(source: Source) -> None:
    with the_file(source).open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == source.sha256
        assert file.tell() == source.n_bytes


def facts(header: GgufHeader) -> tuple[object, ...]:
    told = (header.architecture, header.quantisation, header.context_length, header.n_params)
    return (*told, header.has_chat_template)


@pytest.mark.model
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("starter", ("llama", "Q4_1", 8_192, 134_515_008, True)),
        ("gemma3", ("gemma3", "Q4_K_M", 32_768, 268_098_176, False)),
    ],
)
def test_their_headers_are_read(name: str, expected: tuple[object, ...]) -> None:
    header = read_header(the_file(SOURCES[name]))
    assert facts(header) == expected
    assert header.data_end == SOURCES[name].n_bytes


@pytest.mark.model
@pytest.mark.parametrize("kept", [0.999, 0.5, 0.01])
def test_a_shortened_copy_is_refused(tmp_path: Path, kept: float) -> None:
    whole = the_file(SOURCES["starter"])
    cut = tmp_path / "cut.gguf"
    with whole.open("rb") as file:
        cut.write_bytes(file.read(int(SOURCES["starter"].n_bytes * kept)))
    with pytest.raises(ModelFileError, match=r"cut\.gguf"):
        read_header(cut)


@pytest.mark.engine
def test_the_doctor_tries_the_engine_with_a_real_model(watermark: Path, tmp_path: Path) -> None:
    found = self_test(str(watermark), tmp_path, Config())
    assert found.verdict == "ok", found.text
    assert found.text.endswith("generated 4 tokens")
