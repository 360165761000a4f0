"""Run every benchmark, one after the other, and print one table.

    python benchmarks/run.py            # all
    python benchmarks/run.py p13 p15    # those whose names begin so
    python benchmarks/run.py --quick    # tiny sizes: shows that all run, measures nothing

Each runs in a process of its own, so that one's failure hides no other. Run it on a machine that
does nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
LIMIT_S = 1800.0


def scripts(prefixes: list[str]) -> list[Path]:
    """The benchmarks whose names begin with one of the prefixes; all when there is none."""
    found = sorted(HERE.glob("p[0-9]*.py"), key=lambda path: int(path.stem[1:].split("_")[0]))
    return [path for path in found if not prefixes or path.stem.startswith(tuple(prefixes))]


def run_one(script: Path, *flags: str) -> dict[str, Any]:
    """Run a benchmark; what it wrote, or what went wrong as a remark."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        command = [sys.executable, str(script), "--json", str(out), *flags]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=LIMIT_S
            )
        except subprocess.TimeoutExpired:
            return {"figures": [], "failed": f"no end within {LIMIT_S:g} s"}
        if out.exists():
            return dict(json.loads(out.read_text()))
        said = (done.stderr or done.stdout).strip()
        return {"figures": [], "failed": said.splitlines()[-1] if said else "no figures"}


def add_rows(table: Table, script: Path, got: dict[str, Any]) -> bool:
    """One row for each figure; False when something fell short or failed."""
    if "failed" in got:
        table.add_row(script.stem, "-", "-", "-", "FAILED", style="red")
        return False
    for figure in got["figures"]:
        limits = [f"{figure[k]:g}" if figure[k] is not None else "" for k in ("bar", "aim")]
        value = f"{figure['value']:.3f} {figure['unit']}".strip()
        short = figure["verdict"] == "FALLS SHORT"
        table.add_row(
            figure["name"], value, *limits, figure["verdict"], style="red" if short else None
        )
    return not any(figure["verdict"] == "FALLS SHORT" for figure in got["figures"])


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the benchmarks and print one table.")
    parser.add_argument("names", nargs="*", help="prefixes of benchmark names, such as p3")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for a trial")
    args = parser.parse_args()
    chosen = scripts(args.names)
    if not chosen:
        raise SystemExit(f"no such benchmark; there are {', '.join(p.stem for p in scripts([]))}")
    console = Console()
    table = Table("figure", "value", "bar", "aim", "")
    remarks, good = [], True
    for script in chosen:
        console.print(f"{script.stem} ...", style="dim")
        got = run_one(script, *(["--quick"] if args.quick else []))
        good &= add_rows(table, script, got)
        failed = [f"failed: {got['failed']}"] if "failed" in got else []
        remarks += [f"{script.stem}: {r}" for r in (*got.get("remarks", ()), *failed)]
    console.print(table)
    for remark in remarks:
        console.print(remark, markup=False)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
