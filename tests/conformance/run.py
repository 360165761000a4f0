"""`make conformance`: the suites of others against a server with the starter model.

Exit code 1 when anything fails that `known.py` does not explain. `--port N` runs them against a
server that is already there. Reports lie in build/conformance.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from conformance.known import KNOWN
from e2e.client import serving
from environments import ROOT, Unavailable, clean_environ, node_env, python_env, server_environ

LLM_COMPLY = "llm-comply==0.5.0"
LLMPROBE = "llmprobe@0.6.12"
FORMATS = ("openai-chat", "open-responses", "anthropic")
REPORTS = ROOT / "build" / "conformance"
MODEL = "SmolLM2-135M-Instruct.Q4_1"
SUITE_S = 3600
#: One request may take this long: small machines are slow, which no suite means to find out.
REQUEST_S = 600
#: After its assertions, llmprobe goes on to grade the model, for many times as long. Its own limit
#: on tokens ends it there; while assertions run it must not, or nothing is reported.
PROBE_TOKENS = 22_000


@dataclass(frozen=True)
class Score:
    """One suite's result. failed: id -> what it said."""

    suite: str
    n_passed: int
    n_total: int
    failed: dict[str, str]

    @property
    def unexplained(self) -> dict[str, str]:
        return {name: told for name, told in self.failed.items() if name not in KNOWN[self.suite]}

    @property
    def n_applicable(self) -> int:
        return self.n_total - len(self.failed) + len(self.unexplained)


def llm_comply(url: str, form: str) -> Score:
    """One format of llm-comply; skipped tests do not count."""
    program = python_env("llm-comply", [LLM_COMPLY]) / "llm-comply"
    command = [str(program), "run", "-u", f"{url}/v1", "-k", "x", "-m", MODEL]
    command += ["--format", form, "--json", "--timeout", str(REQUEST_S)]
    report = json.loads(_run(command, REPORTS / f"llm-comply-{form}.json"))
    ran = [one for one in report["results"] if one["status"] != "skipped"]
    failed = {
        one["id"]: "; ".join(one.get("errors") or [])[:200]
        for one in ran
        if one["status"] != "passed"
    }
    return Score(f"llm-comply {form}", len(ran) - len(failed), len(ran), failed)


def llmprobe(url: str) -> Score:
    """The MUST assertions of llmprobe; what the model made impossible to see does not count."""
    home = node_env("llmprobe", [LLMPROBE])
    report_file = REPORTS / "llmprobe.json"
    report_file.unlink(missing_ok=True)
    program = home / "node_modules" / ".bin" / "llmprobe"
    _run(
        [
            *(str(program), f"{url}/v1", "-m", MODEL, "--no-save", "--no-bench", "--no-color"),
            *("--timeout", str(REQUEST_S), "--budget", str(PROBE_TOKENS)),
            *("--save", str(report_file)),
        ],
        REPORTS / "llmprobe.log",
    )
    if not report_file.is_file():
        raise Unavailable("llmprobe wrote no report")
    report = json.loads(report_file.read_text(encoding="utf-8"))
    if why := report.get("incomplete"):  # else it would be a good score of what was tried
        raise SystemExit(f"llmprobe: {why}; see {REPORTS}/server.log")
    conformance = report["conformance"]
    if not conformance["total"]:
        raise SystemExit(f"llmprobe ended before its assertions did; see {REPORTS}/llmprobe.log")
    failed = {
        failure["id"]: failure["message"][:200]
        for result in conformance["results"]
        for failure in result["failures"]
        if failure["severity"] == "MUST"
    }
    return Score("llmprobe", conformance["passed"], conformance["total"], failed)


def table(scores: list[Score]) -> str:
    """The scores as people read them, in Markdown."""
    lines = ["| suite | passed | of those that apply |", "| --- | --- | --- |"]
    for score in scores:
        share = f"{score.n_passed} of {score.n_total}"
        lines.append(f"| {score.suite} | {share} | {score.n_passed} of {score.n_applicable} |")
    return "\n".join(lines)


def explain(scores: list[Score]) -> str:
    """Each failure, and why it is none, if it is none."""
    lines = []
    for score in scores:
        for name, told in score.failed.items():
            reason = KNOWN[score.suite].get(name)
            lines.append(f"{'known ' if reason else 'FAILED'} {score.suite}: {name}: {told}")
            lines += [f"       because {reason}"] if reason else []
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, help="of a server that is already there")
    port = parser.parse_args(arguments).port
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server ends with the run
    REPORTS.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    try:
        with _server(port) as url:
            scores = [llm_comply(url, form) for form in FORMATS]
            scores.append(llmprobe(url))
    except Unavailable as error:
        print(f"Conformance cannot be measured here: {error}.", file=sys.stderr)
        return 2
    told = f"{table(scores)}\n\n{explain(scores)}\n"
    (REPORTS / "scores.md").write_text(told, encoding="utf-8")
    print(told)
    print(f"{time.monotonic() - began:.0f} s; reports in {REPORTS}", file=sys.stderr)
    return int(any(score.unexplained for score in scores))


@contextlib.contextmanager
def _server(port: int | None) -> Iterator[str]:
    if port is not None:
        yield f"http://127.0.0.1:{port}"
        return
    log = REPORTS / "server.log"
    # Some tests set no limit: the context ends what a small model would go on with.
    with serving(log, "--ctx", "4096", "--no-disk-cache", env=server_environ()) as server:
        yield server.url


def _run(command: list[str], output: Path) -> str:
    """What the program writes, which then also lies in that file."""
    home = clean_environ(HOME=str(REPORTS))  # suites keep records of their runs there
    with output.open("wb") as out:
        subprocess.run(command, env=home, stdout=out, timeout=SUITE_S, check=False)
    return output.read_text(encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
