"""The tables of docs/settings.md, made from the table of settings.

python -m naiad.cli.settings_page docs/settings.md    puts them between the marks in the file
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from naiad.cli.settings import BY_NAME, GROUPS, Setting

#: Where a value comes from when nobody gave one, for settings whose default is no plain value.
UNSET = {
    "model": "the starter",
    "models_dir": "the system's data folder",
    "server": "one that runs, else a new one",
    "ctx": "the model's own, as far as it fits",
    "threads": "what was measured, else the physical cores",
    "kv_type": "by profile: `f16`, or what was measured",
    "flash_attention": "what was measured",
    "extra_buffers": "what was measured, else `true`",
    "lane": "what was measured",
    "host_cache_mib": "1024, less where memory is short",
    "disk_cache_dir": "the system's cache folder",
    "saves_dir": "the system's data folder",
    "responses_file": "`responses.db` in the system's data folder",
}
#: What is said beyond the help of the flag.
MORE = {
    "host": "Any other than this machine's own asks for a key.",
    "model": "On the command line it stands without a flag.",
    "models_dir": "`naiad pull` puts models there.",
    "quiet": "A key that was made up for this run is printed all the same.",
    "parallel": "A real model takes up to 255. Others wait.",
    "ctx": "Prompt and answer together.",
    "profile": "`default`: first words soon, and prompts that begin alike share their work. "
    "`throughput`: many unrelated requests, each with cells of its own.",
    "extra_buffers": "Off is the safe mode.",
    "host_cache_mib": "0 for none.",
    "disk_cache": "A conversation then goes on quickly. The files are for your user alone; "
    "`naiad cache` shows them and can delete them.",
    "disk_cache_mib": "All models together; 0 for none.",
    "admin_key": "All that `api_key` opens, and priorities below 0.",
    "engine": "`scripted` answers without a model.",
    "saves_dir": "They are for your user alone.",
    "multiplayer": "Whoever may use the server may join.",
    "max_queue_tokens": "All requests together.",
    "responses_file": "SQLite, for your user alone.",
    "responses_most": "At most 512 MiB.",
    "max_connections_per_host": "This machine's own are not counted.",
}
_DEFAULT_IN_HELP = re.compile(r" \(default: [^)]*\)")

BEGIN = "<!-- settings: made by python -m naiad.cli.settings_page docs/settings.md -->"
END = "<!-- end of settings -->"


def tables() -> list[str]:
    """The lines of the tables, one for each group; hidden settings are in none."""
    head = ["| setting | default | accepts | what it does |", "| --- | --- | --- | --- |"]
    return [
        line
        for title, names in GROUPS.items()
        for line in ("", f"### {title}", "", *head, *(row(BY_NAME[name]) for name in names))
    ]


def row(setting: Setting) -> str:
    """A setting's line."""
    told = (_DEFAULT_IN_HELP.sub("", setting.help), MORE.get(setting.name))
    text = " ".join(filter(None, told))
    return f"| `{setting.name}` | {default_of(setting)} | {setting.accepts} | {text} |"


def default_of(setting: Setting) -> str:
    """The default as the file would give it, or where it comes from in words."""
    if setting.name in UNSET:
        return UNSET[setting.name]
    if setting.default in (None, ()):
        return "none"
    value = setting.default
    return f"`{value:g}`" if isinstance(value, float) else f"`{str(value).lower()}`"


def with_tables(page: str) -> str:
    """The page with what stands between the marks replaced. Raises ValueError without marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    return "\n".join([before + BEGIN, *tables(), "", END]) + after


def main(arguments: Sequence[str]) -> None:
    """Rewrite the page that is named."""
    page = Path(arguments[0])
    page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
