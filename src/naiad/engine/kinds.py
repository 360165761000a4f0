"""Which kind of pool and of prefix cache a model in a context needs."""

from __future__ import annotations

from naiad.engine.blocks import Store
from naiad.engine.cache import Cache, Slots
from naiad.engine.checkpoints import Checkpoints
from naiad.engine.executor import MemoryLike, State
from naiad.engine.host_cache import HostCache
from naiad.engine.pool import Pool
from naiad.engine.prefix import PrefixCache
from naiad.engine.stream_pool import StreamPool
from naiad.engine.whole_cache import WholeCache
from naiad.engine.whole_pool import WholePool
from naiad.native.buffers import bytes_held


def pool_and_cache(
    memory: MemoryLike,
    n_slots: int,
    host_cache_bytes: int,
    store: Store[State] | None,
    *,
    window: int,
    can_cut: bool,
    kv_unified: bool,
) -> tuple[Slots, Cache]:
    """Both over one native memory.

    can_cut: the end of a sequence can be dropped, which recurrent and hybrid models cannot.
    kv_unified: all sequences share one pool of cells, else each has a stream of its own.
    """
    if can_cut and kv_unified:
        blocks = Pool(memory, n_slots, window)
        return blocks, PrefixCache(blocks, HostCache(host_cache_bytes, store, bytes_held))
    pool = StreamPool(memory, n_slots, window) if can_cut else WholePool(memory, n_slots)
    host = Checkpoints(host_cache_bytes, store, bytes_held)
    return pool, WholeCache(pool, host, can_cut=can_cut, keeps_parked=not kv_unified)
