"""The documentation names things that exist: functions, files, settings, error codes."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from naiad import errors
from naiad.cli import settings_page
from naiad.cli.main import COMMANDS
from naiad.cli.settings import BY_NAME, SETTINGS

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
DOTTED = re.compile(r"`(naiad(?:\.\w+)+)(?<!\.toml)`")
LINK = re.compile(r"\]\((?!https?://)([^)#\s]+)")
FILE = re.compile(r"`((?:src|tests|docs|benchmarks)/[\w./-]+)`")
FLAG = re.compile(r"(?<![\w<!-])--([a-z][a-z-]+)")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def module_of(dotted: str) -> tuple[Path, list[str]]:
    """The source file of a dotted name, and what is named inside it."""
    path, parts = SRC, dotted.split(".")
    while parts and (path / parts[0]).is_dir():
        path /= parts.pop(0)
    if parts and (path / f"{parts[0]}.py").is_file():
        return path / f"{parts.pop(0)}.py", parts
    return path / "__init__.py", parts


def names_in(body: list[ast.stmt]) -> dict[str, list[ast.stmt]]:
    """What a module's or a class's body defines, and the body of each."""
    found: dict[str, list[ast.stmt]] = {}
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found[node.name] = node.body
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = []
        elif isinstance(node, ast.Assign):
            found |= {t.id: [] for t in node.targets if isinstance(t, ast.Name)}
    return found


def exists(dotted: str) -> bool:
    path, parts = module_of(dotted)
    if not path.is_file():
        return False
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for part in parts:
        defined = names_in(body)
        if part not in defined:
            return False
        body = defined[part]
    return True


def trace() -> list[str]:
    """The names that head the steps of the traced request."""
    section = read("ARCHITECTURE.md").partition("<!-- trace")[2].partition("<!-- end of trace")[0]
    steps = re.findall(r"^\d+\. (.*)$", section, flags=re.MULTILINE)
    return [DOTTED.findall(step)[0] for step in steps]


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the tables whose first column has this heading, without backticks."""
    found: list[list[str]] = []
    is_inside = False
    for line in read(page).splitlines():
        is_head = line.startswith(f"| {heading} |")
        is_inside = is_head or (is_inside and line.startswith("|"))
        if is_inside and not is_head and not line.startswith("| ---"):
            found.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return found


def every_error(cls: type[errors.NaiadError]) -> list[type[errors.NaiadError]]:
    subclasses = [sub for sub in cls.__subclasses__() if sub.__module__ == errors.__name__]
    return [cls, *(error for sub in subclasses for error in every_error(sub))]


def test_one_request_is_traced_in_at_most_twelve_calls_that_exist() -> None:
    names = trace()
    assert 8 <= len(names) <= 12
    assert [name for name in names if not exists(name)] == []


def test_the_check_itself_can_fail() -> None:
    assert exists("naiad.errors.NaiadError")
    assert exists("naiad.errors.NaiadError.__init__")
    assert exists("naiad.errors.NaiadError.code")
    assert not exists("naiad.errors.NoSuchError")
    assert not exists("naiad.errors.NaiadError.no_such_method")
    assert not exists("naiad.no_such_room.thing")


@each_page
def test_dotted_names_exist(page: Path) -> None:
    named = DOTTED.findall(page.read_text(encoding="utf-8"))
    assert [name for name in named if not exists(name)] == []


@each_page
def test_links_and_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    files = [name for name in FILE.findall(text) if not (ROOT / name).exists()]
    assert (links, files) == ([], [])


@each_page
def test_every_page_of_docs_is_in_the_index(page: Path) -> None:
    if page.parent.name == "docs" and page.name != "index.md":
        assert f"({page.name})" in read("docs/index.md")


def test_every_setting_is_documented_as_it_is() -> None:
    page = read("docs/settings.md")
    remake = "python -m naiad.cli.settings_page docs/settings.md"
    assert settings_page.with_tables(page) == page, f"the tables are out of date: {remake}"
    documented = {row[0]: row[1] for row in rows("docs/settings.md", "setting")}
    assert set(documented) == {setting.name for setting in SETTINGS if not setting.hidden}
    assert (documented["port"], documented["heartbeat_s"]) == ("5001", "10")
    assert set(settings_page.UNSET) | set(settings_page.MORE) <= set(documented)


def test_a_settings_page_without_its_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="has no <!-- settings"):
        settings_page.with_tables("# Settings")


def test_every_error_code_is_documented_with_its_status() -> None:
    documented = {row[0]: int(row[1]) for row in rows("docs/errors.md", "code")}
    assert documented == {error.code: error.status for error in every_error(errors.NaiadError)}


def test_flags_of_the_server_that_are_mentioned_exist() -> None:
    known = {name.replace("_", "-") for name in BY_NAME} | {"config", "help", "install"}
    pages = ["README.md", "docs/start.md", "docs/settings.md", "docs/errors.md"]
    assert set(FLAG.findall("".join(map(read, pages)))) <= known


def test_every_command_is_in_the_readme() -> None:
    table = "\n".join(" ".join(row) for row in rows("README.md", "command"))
    assert [name for name in COMMANDS if name not in table] == []


def test_every_page_of_docs_is_in_the_web_site() -> None:
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert set(re.findall(r"([\w-]+\.md)$", read("mkdocs.yml"), flags=re.MULTILINE)) == pages


@pytest.mark.soak
def test_the_web_site_builds_without_a_warning(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "site" / "index.html").exists()


def test_the_import_table_is_the_one_that_is_enforced() -> None:
    tree = ast.parse(read("tests/test_layers.py"))
    node = next(n for n in tree.body if isinstance(n, ast.AnnAssign) and n.value is not None)
    assert node.value is not None
    enforced = ast.literal_eval(node.value)
    documented = {row[0]: row[2] for row in rows("ARCHITECTURE.md", "room")}
    assert set(documented) == set(enforced)
    for room in set(enforced) - {"cli"}:
        told = set(documented[room].split(", ")) - {"nothing"}
        assert told == enforced[room], room
