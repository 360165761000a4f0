"""Which settings suit this machine: what was asked for, else what was measured, else a rule.

Pure functions of plain values but for `this_machine`, so that every choice can be tested and
explained. How large things
may be is the matter of `naiad.engine.memory_fit`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, TypeVar

from naiad.config import EngineConfig, Tuning

T = TypeVar("T")
KvType = Literal["f16", "q8_0"]

#: Bytes of one cached key or value, by type (q8_0: 34 bytes for 32 values).
KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32}
DEFAULT_N_UBATCH = 512


@dataclass(frozen=True, slots=True)
class Machine:
    """What rules of thumb need to know. logical: processors that this process may use."""

    logical: int
    physical: int
    on_gpu: bool = False
    has_amx: bool = False


def this_machine(*, on_gpu: bool = False, has_amx: bool = False) -> Machine:
    """The processors of this machine, as far as this process may use them."""
    import psutil

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    logical = usable or os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or logical
    return Machine(logical, physical, on_gpu=on_gpu, has_amx=has_amx)


@dataclass(frozen=True, slots=True)
class Choice:
    """The settings that an engine will run with.

    lane: whether long prompts should be computed in a second context; None: not measured.
    why: setting -> who chose it: "asked", "measured" or "rule".
    """

    threads: int
    n_ubatch: int
    flash_attention: bool
    kv_type: KvType
    kv_unified: bool
    extra_buffers: bool
    lane: bool | None
    profile: str
    why: dict[str, str]

    @property
    def is_tuned(self) -> bool:
        return "measured" in self.why.values()

    def explained(self) -> str:
        """One line: each setting and who chose it."""
        shown = {
            "threads": f"{self.threads} threads",
            "n_ubatch": f"micro-batch {self.n_ubatch}",
            "flash_attention": f"flash attention {'on' if self.flash_attention else 'off'}",
            "kv_type": f"KV {self.kv_type}",
            "kv_unified": "one pool" if self.kv_unified else "streams apart",
            "extra_buffers": f"extra buffers {'on' if self.extra_buffers else 'off'}",
        }
        return ", ".join(f"{text} ({self.why[name]})" for name, text in shown.items())


class _Chooser:
    """Takes what was asked, else what was measured, else the rule; and remembers which."""

    def __init__(self) -> None:
        self.why: dict[str, str] = {}

    def __call__(self, name: str, asked: T | None, measured: T | None, rule: T) -> T:
        for value, who in ((asked, "asked"), (measured, "measured"), (rule, "rule")):
            if value is not None:
                self.why[name] = who
                return value
        raise AssertionError("a rule is never None")


def choose(config: EngineConfig, machine: Machine) -> Choice:
    """Settle what the engine runs with."""
    tuning = tuning_for(config)
    pick = _Chooser()
    is_throughput = config.profile == "throughput"
    extra_buffers = pick("extra_buffers", config.extra_buffers, tuning.extra_buffers, True)
    quantised = is_throughput and not machine.on_gpu and config.flash_attention is not False
    measured_kv = tuning.kv_type if config.flash_attention is not False else None
    usual_kv: KvType = "q8_0" if quantised else "f16"
    kv_type = pick("kv_type", config.kv_type, measured_kv, usual_kv)
    rule = choose_flash_attention(
        None,
        kv_type=kv_type,
        on_gpu=machine.on_gpu,
        uses_amx=extra_buffers and machine.has_amx and not is_throughput,
    )
    flash = pick("flash_attention", config.flash_attention, tuning.flash_attention, rule)
    return Choice(
        threads=pick("threads", config.threads, tuning.threads, _threads(machine)),
        n_ubatch=pick("n_ubatch", config.n_ubatch, tuning.n_ubatch, DEFAULT_N_UBATCH),
        flash_attention=flash or kv_type != "f16",
        kv_type=kv_type,
        # Sharing needs one pool, and the default profile is there to share.
        kv_unified=pick(
            "kv_unified", None, tuning.kv_unified if is_throughput else None, not is_throughput
        ),
        extra_buffers=extra_buffers,
        lane=tuning.lane,
        profile=config.profile,
        why=pick.why,
    )


def tuning_for(config: EngineConfig) -> Tuning:
    """What was measured, as far as it holds for this configuration.

    Measured with repacked weights, it says nothing of an engine without them, but for the threads.
    """
    tuning = config.tuning or Tuning()
    if config.extra_buffers is False and tuning.extra_buffers is not False:
        return Tuning(threads=tuning.threads, source=tuning.source)
    return tuning


def uses_extra_buffers(config: EngineConfig) -> bool:
    """Whether the weights are to be repacked; known before anything is loaded."""
    measured = tuning_for(config).extra_buffers
    return measured is not False if config.extra_buffers is None else config.extra_buffers


def _threads(machine: Machine) -> int:
    return choose_threads(None, logical=machine.logical, physical=machine.physical)


def choose_threads(asked: int | None, *, logical: int, physical: int) -> int:
    """Threads for decoding: the physical cores, since more than one thread a core only contends.

    With four logical processors or fewer all are used: virtual machines count threads as cores
    and the other way round, and one thread instead of two halves everything.
    """
    if asked is not None:
        return asked
    return logical if logical <= 4 else max(1, min(physical, logical))


def choose_flash_attention(
    asked: bool | None, *, kv_type: str, on_gpu: bool, uses_amx: bool
) -> bool:
    """Measured: with AMX, decoding many long contexts is 5x faster without; elsewhere it pays.

    A quantised cache cannot be read without it.
    """
    if kv_type != "f16":
        return True
    if asked is not None:
        return asked
    return on_gpu or not uses_amx


def gpu_layer_tries(asked: int | str, *, n_layer: int, has_gpu: bool) -> list[int]:
    """Layer counts to try in order: the whole model first, then less, at last none."""
    everything = n_layer + 1
    if not has_gpu:
        return [0]
    if asked != "auto":
        return [min(int(asked), everything)]
    return [everything, n_layer * 3 // 4, n_layer // 2, n_layer // 4, 0]
