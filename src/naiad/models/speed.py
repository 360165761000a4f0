"""How fast one stream will be on this machine's processor, reckoned before anything is loaded.

A token costs the time to read the weights that it needs, a fixed piece for each layer (threads wait
for each other several times in it), a piece for each entry of the vocabulary that it is chosen
from, and arithmetic over the context before it: 2 operations for each number of every query head's
keys and values. How fast memory is read is measured. The other constants were fitted to runs of
models of 0.1 to 1 billion weights on two cores of an AMD EPYC with AVX-512, which they meet within
a fifth; other processors differ, so what comes out is an estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

from naiad.models.cost import Cost

#: Of the speed of reading memory, what reaching for weights attains.
READ_SHARE = 0.87
#: Bytes a second that one core gets through of types whose kernels do more than wait for memory.
SLOW_BYTES_PER_S = 9e9
LAYER_S = 50e-6
ENTRY_S = 12e-9
#: Operations a second of one core in attention, and how much longer it takes by KV type.
ATTENTION_PER_S = 12e9
KV_FACTOR = {"f16": 1.0, "q8_0": 1.3}


@dataclass(frozen=True, slots=True)
class Machine:
    """bytes_per_s: how fast all cores together read memory. n_cores: physical ones."""

    bytes_per_s: float
    n_cores: int


@dataclass(frozen=True, slots=True)
class Pace:
    """What a token costs, in seconds. past_s: for each token of context before it; window_s: for
    each of them within the window, in the layers that have one."""

    weights_s: float
    layers_s: float
    choosing_s: float
    past_s: float
    window_s: float = 0.0
    window: int = 0

    def tokens_per_s(self, n_past: int) -> float:
        """Tokens a second behind so many tokens of context."""
        fixed = self.weights_s + self.layers_s + self.choosing_s
        past = n_past * self.past_s + min(n_past, self.window) * self.window_s
        return 1 / max(fixed + past, 1e-9)


def pace(cost: Cost, kv_type: str, machine: Machine) -> Pace:
    """The pace of one stream with this KV type: f16 or q8_0."""
    reading = machine.bytes_per_s * READ_SHARE
    slow = min(reading, SLOW_BYTES_PER_S * machine.n_cores)
    attention = 2 * KV_FACTOR[kv_type] / (ATTENTION_PER_S * machine.n_cores)
    return Pace(
        weights_s=(cost.token_bytes - cost.slow_bytes) / reading + cost.slow_bytes / slow,
        layers_s=cost.n_layers * LAYER_S,
        choosing_s=cost.n_vocab * ENTRY_S,
        past_s=cost.attended * attention,
        window_s=cost.attended_in_window * attention,
        window=cost.window,
    )
