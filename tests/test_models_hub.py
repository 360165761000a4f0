"""`naiad pull hf:` before a stand-in of the hub: names, choices, refusals, and its own cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gguf_files import small_model
from hub_stand_in import COMMIT, REPO, Hub, hub
from naiad.cli import settings
from naiad.cli.main import run
from naiad.errors import ModelFileError
from naiad.models import hub as hubs
from naiad.models.catalogue import find, installed
from naiad.models.hub import HubName, hub_name
from naiad.models.places import HUB, Place

MODEL = small_model()
Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache, a models folder and settings of the test's own; nobody is logged in."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("NAIAD_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setattr(settings, "default_file", lambda: tmp_path / "naiad.toml")
    monkeypatch.setattr("naiad.cli.pulling.free_bytes", lambda: 1 << 34)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    return tmp_path / "hub"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    names = ("tiny.Q2_K.gguf", "tiny.Q4_K_M.gguf", "tiny.Q8_0.gguf")
    files = {name: MODEL + bytes(i) for i, name in enumerate(names)}
    files |= {"README.md": b"# Tiny", "mmproj-tiny.F16.gguf": MODEL}
    with hub(files=files) as state:
        monkeypatch.setenv("HF_ENDPOINT", state.url)
        yield state


def model_files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*.gguf")} if folder.exists() else set()


# --- names


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("hf:a/b", HubName("a/b")),
        ("hf:a/b-GGUF:Q4_K_M", HubName("a/b-GGUF", "Q4_K_M")),
        ("hf:a/b:sub/x.gguf", HubName("a/b", "sub/x.gguf")),
        ("https://huggingface.co/a/b", HubName("a/b")),
        ("https://huggingface.co/a/b/blob/main/x.gguf", HubName("a/b", "x.gguf")),
        ("https://hf.co/a/b/resolve/main/x.gguf?download=true", HubName("a/b", "x.gguf")),
        ("https://example.org/a/b", None),
        ("hf:a", None),
        ("a/b", None),
    ],
)
def test_a_repository_is_named_in_several_ways(text: str, named: HubName | None) -> None:
    assert hub_name(text) == named


# --- pulling


def test_the_proposed_file_lands_in_the_hubs_own_cache(
    server: Hub, cache: Path, capsys: Output
) -> None:
    assert run(["pull", f"hf:{REPO}"]) == 0
    err = capsys.readouterr().err
    assert "-> Q4_K_M" in err
    assert "Proposed: Q4_K_M, four bits: little loss, little memory; 12.0 GiB of memory" in err
    path = cache / "models--someone--Tiny-GGUF" / "snapshots" / COMMIT / "tiny.Q4_K_M.gguf"
    assert f"Ready: {path}" in err
    assert "naiad run tiny.Q4_K_M" in err
    assert path.read_bytes() == server.files["tiny.Q4_K_M.gguf"]
    assert path.resolve().name == server.digest("tiny.Q4_K_M.gguf")
    assert (model := find(f"hf:{REPO}", cache, [Place(cache, HUB)])) == path
    assert [m.repo for m in installed(cache.parent / "models", [Place(cache, HUB)])] == [REPO]
    assert run(["rm", f"hf:{REPO}:q4_k_m", "--yes"]) == 0
    assert not model.is_symlink()
    assert list((cache / "models--someone--Tiny-GGUF" / "blobs").iterdir()) == []


def test_a_named_file_is_taken_without_a_question_and_only_once(
    server: Hub, capsys: Output
) -> None:
    for name in ("q8_0", "tiny.Q8_0.gguf"):
        assert run(["pull", f"hf:{REPO}:{name}"]) == 0
        assert "tiny.Q8_0.gguf" in capsys.readouterr().err
    assert len(server.ranges) == 1
    assert run(["pull", "--quiet", f"https://huggingface.co/{REPO}"]) == 0
    assert capsys.readouterr().err == ""
    assert run(["pull", f"hf:{REPO}:Q9"]) == 1
    assert "There is no 'q9' in this repository; there is: Q2_K, Q4_K_M, Q8_0." in (
        capsys.readouterr().err
    )


def test_somebody_at_a_terminal_is_asked(
    server: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream in ("stdin", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    monkeypatch.setattr("naiad.cli.progress.sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("click.prompt", lambda text, default, err: "q2_k")
    assert run(["pull", f"hf:{REPO}", "--quiet"]) == 0
    assert model_files(cache) == {"tiny.Q2_K.gguf"}


def test_a_model_in_parts_is_one_model(server: Hub, cache: Path, capsys: Output) -> None:
    first, second = (f"big-Q4_0-0000{n}-of-00002.gguf" for n in (1, 2))
    server.files = {first: MODEL, second: MODEL + b"2"}
    assert run(["pull", f"hf:{REPO}"]) == 0
    assert "part 2 of 2" in capsys.readouterr().err
    (model,) = installed(cache.parent / "models", [Place(cache, HUB)])
    assert (model.path.name, model.n_bytes) == (first, 2 * len(MODEL) + 1)
    assert find("big-Q4_0", cache, [Place(cache, HUB)]) == model.path
    assert run(["rm", "big-Q4_0", "-y"]) == 0
    assert model_files(cache) == set()


def test_a_cut_connection_is_resumed_into_the_cache(server: Hub, cache: Path) -> None:
    server.cut_after = 97
    assert run(["pull", f"hf:{REPO}:Q4_K_M"]) == 0
    assert model_files(cache) == {"tiny.Q4_K_M.gguf"}
    assert server.ranges[1] == "bytes=97-"


# --- refusals: a sentence that says what to do, and nothing installed


def refused(capsys: Output, cache: Path, name: str = f"hf:{REPO}:Q4_K_M") -> str:
    assert run(["pull", name]) == 1
    assert model_files(cache) == set()
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err


def test_a_wrong_digest_is_refused(server: Hub, cache: Path, capsys: Output) -> None:
    server.lies.add("tiny.Q4_K_M.gguf")
    assert "is not the expected file (SHA-256" in refused(capsys, cache)


def test_a_gated_repository_says_how_to_get_in(server: Hub, cache: Path, capsys: Output) -> None:
    server.gated = True
    told = refused(capsys, cache)
    assert f"{REPO} is gated: accept its terms at {server.url}/{REPO}" in told
    assert "HF_TOKEN" in told


def test_an_unknown_repository_or_an_odd_name(server: Hub, cache: Path, capsys: Output) -> None:
    assert "There is no repository no/such at" in refused(capsys, cache, "hf:no/such")
    assert "must be hf:OWNER/REPO" in refused(capsys, cache, "hf:nonsense")
    assert "is no name of a repository" in refused(capsys, cache, "hf:a/b--c..d")
    server.files = {"model.safetensors": b"x"}
    assert "holds no GGUF file" in refused(capsys, cache, f"hf:{REPO}")


def test_a_file_that_vanished(server: Hub) -> None:
    listing = hubs.look_up(REPO)
    gone = next(file for file in listing.files if file.name == "tiny.Q2_K.gguf")
    del server.files[gone.name]
    with pytest.raises(ModelFileError, match="does not hold this file"):
        hubs.fetch(listing, gone, lambda *_: None)


def test_a_hub_in_trouble_or_out_of_reach(
    server: Hub, cache: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    server.down = True
    assert "answered 500" in refused(capsys, cache)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    told = refused(capsys, cache)
    assert "http://127.0.0.1:9 cannot be reached" in told
    assert "Errno" not in told and "Is this machine connected?" in told


def test_too_little_room(
    server: Hub, cache: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = type("Usage", (), {"free": 0})()
    monkeypatch.setattr("naiad.models.download.shutil.disk_usage", lambda path: none)
    assert "Not enough room" in refused(capsys, cache)


def test_a_login_goes_to_the_hub_and_not_to_its_store(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "secret")
    assert hubs._authorization(f"{server.url}/x") == "Bearer secret"
    assert hubs._authorization("https://cdn.example/x") == ""
