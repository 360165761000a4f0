"""axe-core, the accessibility checker: fetched from npm for the tests, and part of nothing else.

`python tests/ui/axe.py` fetches it; without npm it says so and succeeds, and the tests that need
it are skipped.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from environments import FOLDER, Unavailable, node_env

PACKAGES = ("axe-core@4.14.1",)
SCRIPT = FOLDER / "js-axe" / "node_modules" / "axe-core" / "axe.min.js"

#: Runs axe on what the page shows now; its findings, each with the elements that it means.
RUN = """async () => {
    const { violations } = await axe.run(document, { resultTypes: ['violations'] });
    const told = node => `    ${node.html.slice(0, 160)}\\n    ${node.failureSummary}`;
    return violations.map(({ id, impact, help, nodes }) =>
        `${impact}: ${id}: ${help}\\n${nodes.map(told).join('\\n')}`);
}"""


def findings(page: Any) -> list[str]:
    """What axe finds wrong with the page as it stands, the harmless included."""
    page.evaluate(SCRIPT.read_text(encoding="utf-8"))
    found: list[str] = page.evaluate(RUN)
    return found


def fetch() -> int:
    """Fetch it where npm is; the exit status is 0 either way, for it is a help and no condition."""
    try:
        node_env("axe", PACKAGES)
    except Unavailable as missing:
        print(
            f"axe-core is not there, so accessibility will not be checked: {missing}.",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    sys.exit(fetch())
