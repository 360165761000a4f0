"""What is compared: a set of settings, and how much work each measurement does."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from naiad.config import Tuning

#: Pieces of work that are timed; see `naiad.tune.workloads`.
Workload = Literal["decode_one", "decode_many", "shared", "prefill", "deep"]
WaitPolicy = Literal["active", "passive"]


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one bare engine. wait_policy: OMP_WAIT_POLICY; None leaves it unset."""

    threads: int
    n_ubatch: int = 512
    flash_attention: bool = True
    kv_unified: bool = True
    kv_type: Literal["f16", "q8_0"] = "f16"
    extra_buffers: bool = True
    wait_policy: WaitPolicy | None = None

    def with_(self, **changes: Any) -> Candidate:
        """The same with some settings changed."""
        return msgspec.structs.replace(self, **changes)

    def differences(self, other: Candidate) -> dict[str, Any]:
        """The settings in which this one differs from the other, with its own values."""
        mine, theirs = msgspec.structs.asdict(self), msgspec.structs.asdict(other)
        return {name: value for name, value in mine.items() if value != theirs[name]}

    def tuning(self, source: str, lane: bool | None) -> Tuning:
        """As what an engine is told."""
        return Tuning(**msgspec.structs.asdict(self), source=source, lane=lane)


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """How much each measurement does, in tokens and sequences.

    n_decode: steps timed; n_streams: sequences that decode together; n_short: tokens that each has
    when nothing is shared; n_prefix: tokens that they share; n_prompt: a prompt from nothing;
    n_deep: tokens computed on top of the prefix; n_newcomer: a prompt that arrives beside others.
    """

    n_decode: int
    n_streams: int
    n_short: int
    n_prefix: int
    n_prompt: int
    n_deep: int
    n_newcomer: int

    def n_cells(self, *, kv_unified: bool) -> int:
        """Cells of one context that holds any of the measurements made in that layout."""
        grown = 2 * self.n_decode + 8
        if not kv_unified:  # each stream has its own, and long prefixes are not measured there
            each = max(self.n_short + grown, self.n_prompt)
            return _round_up(each) * (self.n_streams + 1)
        shared = self.n_prefix + self.n_deep + self.n_streams * grown
        short = self.n_streams * (self.n_short + grown) + self.n_newcomer
        return _round_up(max(shared, short, self.n_prompt))


def _round_up(n: int) -> int:
    return -(-n // 256) * 256


QUICK = Scale(
    n_decode=8, n_streams=4, n_short=32, n_prefix=384, n_prompt=160, n_deep=64, n_newcomer=256
)
FULL = Scale(
    n_decode=24, n_streams=16, n_short=80, n_prefix=1700, n_prompt=512, n_deep=256, n_newcomer=2048
)
