"""`naiad doctor`: look at the machine, the build and the models, and say what to mend."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import click

from naiad.cli.layout import wrapped
from naiad.cli.options import config_option, elsewhere, json_option, settings_options
from naiad.cli.progress import mebibytes
from naiad.cli.settings import load
from naiad.config import Config
from naiad.errors import NaiadError
from naiad.models.catalogue import find, installed, models_dir
from naiad.setup.cpu import Processor, processor
from naiad.setup.record import BuildRecord, libraries_digest, load_record, record_path

Verdict = Literal["ok", "warn", "fail"]

#: A processor feature -> how llama.cpp's line names it when the build uses it.
EXPECTED_IN_BUILD = {
    "amx_int8": "AMX_INT8",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512_VNNI",
    "avx2": "AVX2",
    "asimddp": "DOTPROD",
    "i8mm": "MATMUL_INT8",
}
SELF_TEST_TOKENS = 4
SELF_TEST_PATIENCE_S = 300
#: Less than this free, and even a small model has no room.
LITTLE_MEMORY = 1 << 30
REBUILD = "Build the engine for this machine: make setup"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. todo: what to do about it; "" when nothing."""

    name: str
    verdict: Verdict
    text: str
    todo: str = ""


@click.command()
@click.argument("model", required=False)
@json_option
@click.option("--no-self-test", is_flag=True, help="Do not start the engine.")
@settings_options("models_dir", "more_models", "host", "port")
@config_option
def doctor(
    model: str | None, as_json: bool, no_self_test: bool, config: str | None, **flags: Any
) -> int:
    """Check this machine and say what to mend. Exits with 1 when something is broken.

    The engine is tried with MODEL, or with the starter model.
    """
    settings = load(flags, file=config)
    folder = models_dir(settings.models_dir)
    findings = [
        *look_at_build(processor(), load_record(), engine_info()),
        look_at_models(folder),
        look_at_memory(),
        look_at_port(settings.host, settings.port),
        *look_at_settings(model, folder, settings),
        *look_at_the_users(config, folder, settings),
    ]
    if not no_self_test:
        findings.append(self_test(model, folder, settings))
    report(findings, as_json)
    return int(any(finding.verdict == "fail" for finding in findings))


def report(findings: list[Finding], as_json: bool) -> None:
    """Print what was found."""
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
        return
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    for finding in findings:
        told = wrapped(f"{finding.verdict:>4}  {finding.name}: ", finding.text, indent=6)
        click.echo(click.style(told[:4], fg=colours[finding.verdict]) + told[4:])
        if finding.todo:
            click.echo(wrapped("      -> ", finding.todo))


def engine_info() -> str | NaiadError:
    """llama.cpp's line of features, or why there is none."""
    from naiad.setup.engine import system_info

    try:
        return system_info()
    except NaiadError as error:
        return error


def look_at_build(
    cpu: Processor, record: BuildRecord | None, info: str | NaiadError
) -> list[Finding]:
    """The processor, the build that is installed, and whether they fit each other."""
    features = ", ".join(cpu.telling_features) or "none that matter"
    found = [Finding("processor", "ok", f"{cpu.name} ({cpu.machine}): {features}")]
    found.append(_look_at_record(cpu, record))
    if isinstance(info, NaiadError):
        return [*found, Finding("engine", "fail", info.message, REBUILD)]
    found.append(Finding("engine", "ok", info))
    unused = unused_features(cpu, info)
    if unused:
        text = f"the engine does not use {', '.join(unused)} of this processor"
        found.append(Finding("features", "warn", text, REBUILD))
    return found


def unused_features(cpu: Processor, info: str) -> list[str]:
    """Features that the processor has and the engine was built without."""
    used = {part.split("=")[0].strip() for part in info.replace(":", "|").split("|")}
    return [
        feature
        for feature, name in EXPECTED_IN_BUILD.items()
        if feature in cpu.features and name not in used
    ]


def _look_at_record(cpu: Processor, record: BuildRecord | None) -> Finding:
    if record is None:
        text = f"no record at {record_path()}: it is not known how the engine was built"
        return Finding("build", "warn", text, REBUILD)
    flags = f" with {record.cxx_flags}" if record.cxx_flags else ""
    text = f"llama-cpp-python {record.version}, {record.compiler}{flags}, GPU: {record.gpu}"
    text += f", {record.built_at}"
    if record.libraries_sha256 != libraries_digest():
        text += "; but the installed libraries are not those of the record"
        return Finding("build", "fail", text, REBUILD)
    missing = sorted(set(record.cpu_features) - set(cpu.features))
    if missing:
        text += f"; but it was built for a processor with {', '.join(missing[:5])}"
        return Finding("build", "fail", text, REBUILD)
    return Finding("build", "ok", text)


def look_at_models(folder: Path) -> Finding:
    """Is there anything to serve?"""
    models = installed(folder)
    if not models:
        todo = "Fetch the starter model: naiad pull starter"
        return Finding("models", "warn", f"none in {folder}", todo)
    return Finding("models", "ok", f"{', '.join(m.name for m in models)} in {folder}")


def look_at_memory() -> Finding:
    """Is there room for a model?"""
    import psutil

    memory = psutil.virtual_memory()
    text = f"{mebibytes(memory.available)} of {mebibytes(memory.total)} available"
    if memory.available < LITTLE_MEMORY:
        return Finding("memory", "warn", text, "Close programs; models need room.")
    return Finding("memory", "ok", text)


def look_at_port(host: str, port: int) -> Finding:
    """Could `naiad serve` listen there?"""
    from naiad.http.serve import bind

    try:
        bind(host, port).close()
    except NaiadError as error:
        return Finding("port", "warn", error.message)
    return Finding("port", "ok", f"{host}:{port} is free")


def look_at_settings(model: str | None, folder: Path, settings: Config) -> list[Finding]:
    """Which measured settings apply, and from when; nothing where there is no model to ask for."""
    from naiad.cli.doctor_tuning import look_at_tuning

    engine = settings.engine
    found = look_at_tuning(model or engine.model or None, folder, engine.profile)
    if found is None:
        return []
    is_measured, text, todo = found
    return [Finding("tuning", "ok" if is_measured else "warn", text, todo)]


def look_at_the_users(config: str | None, folder: Path, settings: Config) -> list[Finding]:
    """Settings file, disk, models of other programs, servers that run."""
    from naiad.cli.doctor_user import look_at_users

    return [
        Finding(name, "ok" if is_well else "warn", text, todo)
        for name, is_well, text, todo in look_at_users(config, folder, settings)
    ]


def self_test(model: str | None, folder: Path, settings: Config) -> Finding:
    """Load a model and generate a few tokens, the way `naiad serve` would."""
    import msgspec

    try:
        path = find(model or settings.engine.model or None, folder, elsewhere(settings))
        alone = {"parallel": 1, "ctx": 256, "draft_model": None}
        engine = msgspec.structs.replace(settings.engine, model=str(path), **alone)
        return asyncio.run(_try_engine(engine))
    except NaiadError as error:
        todo = "" if "naiad pull" in error.message else REBUILD
        return Finding("self-test", "fail", error.message, todo)
    except TimeoutError:
        text = f"the engine did not answer within {SELF_TEST_PATIENCE_S} s"
        return Finding("self-test", "fail", text, REBUILD)


async def _try_engine(config: Any) -> Finding:
    from naiad.client.base import Job
    from naiad.client.launch import engine_from
    from naiad.types import SamplingParams

    engine = engine_from(config)
    try:
        async with asyncio.timeout(SELF_TEST_PATIENCE_S):
            await engine.start()
            model = await engine.wait_ready()
            greedy = SamplingParams(temperature=0.0, ignore_eos=True)
            stream = await engine.submit(Job("Once upon a time", SELF_TEST_TOKENS, greedy))
            n_tokens, error = 0, None
            while True:
                batch = await stream.get()
                n_tokens, error = n_tokens + len(batch.tokens), batch.error
                if batch.finish is not None:
                    break
    finally:
        await engine.close()
    if error is not None:
        raise error
    text = f"{model.name} loaded and generated {n_tokens} tokens"
    if config.extra_buffers is not False and not model.engine.extra_buffers:
        text += "; but only in safe mode: the repacked weights (AMX and friends) failed"
        return Finding("self-test", "warn", text, REBUILD)
    return Finding("self-test", "ok", text)
