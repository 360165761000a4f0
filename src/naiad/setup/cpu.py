"""What the processor can do, as the operating system tells it."""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
#: The features that change how fast a model runs; all others are noise to a reader.
TELLING = (
    "avx", "avx2", "f16c", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx_vnni",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "sve", "sve2", "sme", "bf16",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Processor:
    """name: as it is sold; features: flags in the system's own spelling, sorted."""

    name: str
    machine: str
    features: tuple[str, ...]

    @property
    def telling_features(self) -> tuple[str, ...]:
        """The features that matter for speed, in a fixed order."""
        return tuple(name for name in TELLING if name in self.features)


def processor() -> Processor:
    """Look at this machine's processor; what cannot be read is left empty."""
    if sys.platform == "darwin":
        return _from_sysctl(_sysctl())
    text = CPUINFO.read_text(encoding="utf-8", errors="replace") if CPUINFO.exists() else ""
    return from_cpuinfo(text, platform.machine())


def from_cpuinfo(text: str, machine: str) -> Processor:
    """Read the text of /proc/cpuinfo; x86 says `flags`, arm64 says `Features`."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    features = fields.get("flags") or fields.get("features") or ""
    return Processor(fields.get("model name", machine), machine, tuple(sorted(features.split())))


def _from_sysctl(text: str) -> Processor:
    """Read the lines of `sysctl machdep.cpu hw.optional`, e.g. "hw.optional.arm.FEAT_I8MM: 1"."""
    name, features = platform.machine(), set[str]()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        value = value.strip()
        if key == "machdep.cpu.brand_string":
            name = value
        elif key in ("machdep.cpu.features", "machdep.cpu.leaf7_features"):
            features |= set(value.lower().split())
        elif key.startswith("hw.optional.") and value == "1":
            features.add(key.rpartition(".")[2].lower().removeprefix("feat_"))
    return Processor(name, platform.machine(), tuple(sorted(features)))


def _sysctl() -> str:
    command = ["sysctl", "machdep.cpu", "hw.optional"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
