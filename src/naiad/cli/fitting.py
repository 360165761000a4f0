"""`naiad fit`: will a model run here, at which context, how fast; without loading it."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from naiad.cli.layout import wrapped
from naiad.cli.options import (
    complete_model,
    config_option,
    draft_model_path,
    elsewhere,
    json_option,
    settings_options,
)
from naiad.cli.progress import mebibytes
from naiad.cli.settings import load
from naiad.errors import ConfigError
from naiad.models.catalogue import find, models_dir, parts_of

if TYPE_CHECKING:
    from naiad.engine.memory_fit import ModelShape
    from naiad.models.cost import Cost
    from naiad.models.gguf import GgufHeader
    from naiad.models.speed import Machine

KV_TYPES = ("f16", "q8_0")
#: What a measurement of memory reads, in all threads together: so many bytes at least, and so many
#: for each processor of the machine, since what lies in caches is no measure (some processors have
#: 12 MiB for each core); but no more than a share of what is free. And how often.
PROBE_BYTES, PROBE_BYTES_EACH, PROBE_SHARE = 1 << 28, 32 << 20, 0.25
PROBE_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Fit:
    """One KV type. most_ctx: tokens that one request can have at most, 0 when nothing fits.

    ctx: what was asked for, or the model's own as far as it fits; memory_bytes: all of it there;
    draft_bytes: of these, a draft model's.
    tokens_per_s: one stream's, at the beginning and behind ctx tokens. ms_per_token: where the time
    of a token goes.
    """

    kv_type: str
    most_ctx: int
    ctx: int
    memory_bytes: int
    draft_bytes: int = 0
    tokens_per_s: tuple[float, float] | None = None
    ms_per_token: dict[str, float] | None = None


@click.command()
@click.argument("model", required=False, shell_complete=complete_model)
@json_option
@click.option("--no-speed", is_flag=True, help="Do not measure how fast memory is read.")
@settings_options("ctx", "draft_model", "models_dir", "more_models")
@config_option
def fit(model: str | None, as_json: bool, no_speed: bool, config: str | None, **flags: Any) -> int:
    """Tell whether MODEL runs on this machine, with how much context, and about how fast.

    Nothing is loaded. Exits with 1 when it does not fit.
    """
    settings = load({"model": model, **flags}, file=config)
    folder = models_dir(settings.models_dir)
    path = find(settings.engine.model or None, folder, elsewhere(settings))
    cost = cost_of_file(path)
    draft_path = draft_model_path(settings)
    draft = draft_cost(draft_path, path.stem, cost)
    free = free_bytes()
    machine = None if no_speed else this_machine()
    ctx = settings.engine.ctx
    fits = [fit_for(cost, kind, free, ctx, machine, draft) for kind in KV_TYPES]
    if as_json:
        told = {"model": path.stem, "path": str(path), "free_bytes": free}
        told |= {"n_ctx_train": cost.n_ctx_train, "machine": asdict(machine) if machine else None}
        told |= {"draft_model": draft_path.stem if draft_path else None}
        told |= {"fits": [asdict(one) for one in fits]}
        click.echo(json.dumps(told, indent=2))
    else:
        lines = told_of(path, cost, fits, free, model)
        if draft_path and draft:
            lines.append(told_of_draft(draft_path, draft, fits))
        click.echo("\n".join([*lines, *told_how(fits, machine)]))
    return int(not any(one.most_ctx and one.ctx <= one.most_ctx for one in fits))


def cost_of_file(path: Path, header: GgufHeader | None = None) -> Cost:
    """The costs of a model's file. header: when it was read already. Raises ModelFileError."""
    from naiad.models.cost import cost_of
    from naiad.models.gguf import read_header

    n_bytes = sum(part.stat().st_size for part in parts_of(path) if part.is_file())
    return cost_of(header or read_header(path), n_bytes)


def draft_cost(path: Path | None, model: str, cost: Cost) -> Cost | None:
    """The costs of a draft model, None without one. Raises ModelFileError, and ConfigError when its
    vocabulary is not that of the model; what each token means is compared when it is loaded.
    """
    if path is None:
        return None
    draft = cost_of_file(path)
    if draft.n_vocab != cost.n_vocab:
        raise ConfigError(
            f"draft_model {path.stem} has another vocabulary than {model}: "
            f"{draft.n_vocab} tokens instead of {cost.n_vocab}",
            param="draft_model",
        )
    return draft


def free_bytes() -> int:
    """Memory that is free on this machine, or in this container."""
    import psutil

    from naiad.engine.memory_fit import free_memory

    return free_memory(psutil.virtual_memory().available)


def fit_for(
    cost: Cost,
    kv_type: str,
    free: int,
    ctx: int | None,
    machine: Machine | None,
    draft: Cost | None = None,
) -> Fit:
    """What one KV type allows for one request at a time. ctx: asked for, or None."""
    from naiad.models.speed import pace

    most = most_ctx(lambda n: memory(cost, kv_type, n, draft) <= usable(free))
    wanted = ctx or min(cost.n_ctx_train or most, most)
    n_bytes = memory(cost, kv_type, wanted, draft)
    of_draft = n_bytes - memory(cost, kv_type, wanted)
    if machine is None:
        return Fit(kv_type, most, wanted, n_bytes, of_draft)
    one = pace(cost, kv_type, machine)
    speed = (round(one.tokens_per_s(0), 1), round(one.tokens_per_s(wanted), 1))
    past_s = 1 / one.tokens_per_s(wanted) - 1 / one.tokens_per_s(0)
    seconds = {"weights": one.weights_s, "layers": one.layers_s, "choosing": one.choosing_s}
    parts = {name: round(1000 * s, 3) for name, s in {**seconds, "context": past_s}.items()}
    return Fit(kv_type, most, wanted, n_bytes, of_draft, speed, parts)


def usable(free: int) -> int:
    """Of the free memory, what the engine dares to use."""
    from naiad.engine.memory_fit import USABLE_SHARE

    return int(free * USABLE_SHARE)


def memory(cost: Cost, kv_type: str, n_ctx: int, draft: Cost | None = None) -> int:
    """Bytes for one request of n_ctx tokens: weights, cells, the buffers of a step, and what
    grammars keep of the vocabulary. draft: a second model with a context of that size too.
    """
    from naiad.engine.memory_fit import TREE_BYTES, Wish, compute_bytes, draft_base, round_up

    cells = round_up(max(n_ctx, 1))
    second = _shape(draft, kv_type) if draft else None
    wish = Wish(parallel=1, flash_attention=kv_type != "f16", draft=second)
    shape = _shape(cost, kv_type)
    per_cell = shape.bytes_per_cell + (second.bytes_per_cell if second else 0)
    own = cost.weight_bytes + compute_bytes(shape, wish, cells) + cost.n_vocab * TREE_BYTES
    return own + cells * per_cell + draft_base(wish, cells)


def _shape(cost: Cost, kv_type: str) -> ModelShape:
    from naiad.engine.memory_fit import ModelShape

    return ModelShape(
        mapped_bytes=cost.weight_bytes,
        bytes_per_cell=cost.bytes_per_cell(kv_type),
        n_ctx_train=cost.n_ctx_train,
        n_vocab=cost.n_vocab,
        n_embd=cost.n_embd,
        n_head=cost.n_head,
        has_window=cost.has_window,
    )


def most_ctx(fits: Callable[[int], bool]) -> int:
    """The largest context that fits, in steps of 256 up to 16 million; 0 when none does."""
    low, high = 0, 1
    while high < 1 << 16 and fits(high * 256):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * 256) else (low, middle)
    return low * 256


def this_machine() -> Machine:
    """How fast this machine is now."""
    from naiad.engine.sizing import this_machine as processors
    from naiad.models.speed import Machine

    usable = processors()
    n_cores = min(usable.physical, usable.logical)
    return Machine(read_speed(n_cores, probe_bytes(free_bytes())), n_cores)


def probe_bytes(free: int) -> int:
    """What a measurement reads: more than caches hold, which those of the whole machine share."""
    wanted = max(PROBE_BYTES, PROBE_BYTES_EACH * (os.cpu_count() or 1))
    return max(1 << 20, min(wanted, int(free * PROBE_SHARE)))


def read_speed(n: int, n_bytes: int) -> float:
    """Bytes a second that n cores read from memory together; the best of some rounds."""
    import numpy as np

    arrays = [np.ones(n_bytes // n // 8) for _ in range(n)]
    best = 0.0
    with ThreadPoolExecutor(n) as pool:
        for _ in range(PROBE_ROUNDS):
            started = perf_counter()
            list(pool.map(np.max, arrays))
            best = max(best, n_bytes / (perf_counter() - started))
    return best


def told_of(
    path: Path, cost: Cost, fits: list[Fit], free: int, model: str | None = None
) -> list[str]:
    """The verdict, then a line for each KV type. model: as it was named, if it was."""
    lines = [verdict(fits, model), ""]
    trained = f", made for {cost.n_ctx_train:,} tokens" if cost.n_ctx_train else ""
    lines.append(f"  {path.stem}: {mebibytes(cost.weight_bytes)} of weights{trained}")
    lines.append(f"  {mebibytes(free)} of memory free, {mebibytes(usable(free))} of it usable")
    for one in fits:
        beyond = cost.n_ctx_train and one.most_ctx >= cost.n_ctx_train
        most = "all of its context fits" if beyond else f"at most {one.most_ctx:,} tokens fit"
        line = most
        if one.most_ctx:
            line += f"; {one.ctx:,} tokens take {mebibytes(one.memory_bytes)}"
        if one.tokens_per_s and one.most_ctx:
            line += ", about {:.3g} tokens/s at first, {:.3g} there".format(*one.tokens_per_s)
        lines.append(wrapped(f"  KV {one.kv_type:<5} ", line))
    if cost.is_recurrent:
        lines.append("  Parts of it are recurrent; the state of these is not counted.")
    return lines


def told_of_draft(path: Path, draft: Cost, fits: list[Fit]) -> str:
    """What the draft model takes of the memory above."""
    parts = [f"{mebibytes(one.draft_bytes)} with KV {one.kv_type}" for one in fits]
    weights = mebibytes(draft.weight_bytes)
    counted = f"counted above, its context too: {', '.join(parts)}"
    return f"  Draft model {path.stem}: {weights} of weights, {counted}"


def told_how(fits: list[Fit], machine: Machine | None) -> list[str]:
    """What the speed is made of."""
    best = next((one for one in fits if one.ms_per_token and one.most_ctx), None)
    if machine is None or best is None or best.ms_per_token is None:
        return []
    ms = {name: f"{value:.3g}" for name, value in best.ms_per_token.items()}
    speed, n_cores = f"{machine.bytes_per_s / 1e9:.0f} GB/s", machine.n_cores
    return [
        "",
        f"  The speed is an estimate for the processor, here with KV {best.kv_type}. A token takes",
        f"  {ms['weights']} ms for the weights, {ms['layers']} for the layers' other work, and",
        f"  {ms['choosing']} to be chosen, and {ms['context']} for a full context before it.",
        f"  Memory was read at {speed} by {n_cores} cores just now. The rest was fitted on another",
        "  machine: the estimate may be off by half, and by more while other programs run.",
    ]


def verdict(fits: list[Fit], model: str | None) -> str:
    """One sentence: does it run?"""
    good = [one for one in fits if one.most_ctx and one.ctx <= one.most_ctx]
    if not any(one.most_ctx for one in fits):
        return "It does not fit into this machine's memory."
    if not good:
        best = max(fits, key=lambda one: one.most_ctx)
        most = f"at most {best.most_ctx:,} tokens (--kv-type {best.kv_type})"
        return f"Not with so much context: {most}."
    named = f" {shlex.quote(model)}" if model else ""
    return f"It runs here: naiad serve{named} --ctx {good[0].ctx} --kv-type {good[0].kv_type}"
