"""What fits into memory: contexts, cells and caches as arithmetic that can be shown.

Pure functions of plain numbers, but for `free_memory`.

Formulas, checked against the sizes that llama.cpp reports (tests/test_engine_sizing_real.py):
keys and values are cells x bytes of a cell; a step's buffers are the larger of its logits (tokens
of a micro-batch x vocabulary x 4) and its attention (tokens x cells in sight x 4 for each head and
mask; with flash attention x 2 for the mask alone), and some vectors for each token beside.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from naiad.config import DEFAULT_HOST_CACHE_MIB
from naiad.errors import ConfigError

#: llama.cpp rounds contexts up to this many cells.
CELL_STEP = 256
#: Unless one context needs more, the pool stops at so many cells, or where there are many parallel
#: requests at so many for each, up to the most: it is filled with zeros at start. That costs half a
#: second for a gigabyte, and three where a virtual machine must get the memory from its host.
POOL_ENOUGH, POOL_EACH, POOL_MOST = 32768, 1024, 65536
#: The share of free memory that the pool may take when nobody said otherwise.
POOL_SHARE = 0.25
#: The share of free memory that may be used when asked: Python and other programs need some too.
USABLE_SHARE = 0.85
#: What a context may prepare for saved states: so many bytes, and this share of what is free.
MOST_STOCK, STOCK_SHARE = 128 << 20, 1 / 32
#: Vectors of the model's width that a step keeps for each token, beside logits and attention.
_VECTORS_PER_TOKEN = 16
#: What constrained output keeps of a vocabulary: llguidance's tree of all tokens, made once in the
#: quiet after a start. Measured for each token: 420 bytes of 49,152 tokens (6.8 bytes of text on
#: average), 434 of 262,144 (7.5).
TREE_BYTES = 450
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a model costs. mapped_bytes: weights that count as free memory until they are read."""

    mapped_bytes: int
    bytes_per_cell: int
    n_ctx_train: int
    n_vocab: int = 0
    n_embd: int = 0
    n_head: int = 0
    has_window: bool = False  # sliding layers have a mask of their own


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be held. ctx and host_cache_mib: None when nobody asked for a number.

    most_parked: finished sequences that may stay; in streams each of them has cells of its own.
    can_cut: see CoreLimits. draft: a second model that guesses. stock_bytes: memory prepared for
    saved states, in each context; `fit` sets it.
    """

    parallel: int
    ctx: int | None = None
    host_cache_mib: int | None = None
    most_parked: int = 0
    n_ubatch: int = 512
    flash_attention: bool = True
    kv_unified: bool = True
    can_cut: bool = True
    has_lane: bool = False
    draft: ModelShape | None = None
    stock_bytes: int = 0

    @property
    def n_scratch(self) -> int:
        """Sequences beside those of requests: blocks pass through one; whole states do not."""
        return int(self.kv_unified and self.can_cut)


@dataclass(frozen=True, slots=True)
class MemoryFit:
    """What fits.

    n_ctx: tokens one request may use; n_cells: cells of the context, all sequences together;
    n_parked: finished sequences it has ids for; lane_cells, draft_cells: cells of the lane's and of
    the draft model's context, 0 without.
    stock_bytes: memory that each context may prepare for saved states.
    arithmetic: the sum, for people.
    """

    n_ctx: int
    n_cells: int
    n_parked: int
    lane_cells: int
    host_cache_bytes: int
    stock_bytes: int
    arithmetic: str
    draft_cells: int = 0

    @property
    def host_cache_mib(self) -> int:
        return self.host_cache_bytes // MIB


@dataclass(frozen=True, slots=True)
class _Sum:
    """One way to spend memory, in bytes."""

    shape: ModelShape
    wish: Wish
    n_ctx: int
    n_cells: int
    n_parked: int
    host_cache: int = 0

    @property
    def lane_cells(self) -> int:
        return round_up(self.n_ctx) if self.wish.has_lane else 0

    @property
    def cells(self) -> int:
        return (self.n_cells + self.lane_cells) * self.shape.bytes_per_cell

    @property
    def compute(self) -> int:
        n_seq = self.wish.parallel + self.n_parked + self.wish.n_scratch
        outputs = n_seq * self.shape.n_vocab * 4
        in_sight = self.n_cells if self.wish.kv_unified else round_up(self.n_ctx)
        main = compute_bytes(self.shape, self.wish, in_sight) + outputs
        lane = compute_bytes(self.shape, self.wish, self.lane_cells) + outputs
        return main + (lane if self.lane_cells else 0)

    @property
    def draft_cells(self) -> int:
        return round_up(self.n_ctx) if self.wish.draft else 0

    @property
    def draft(self) -> int:
        """Of the draft model: weights, cells and buffers."""
        cells = self.draft_cells * self.wish.draft.bytes_per_cell if self.wish.draft else 0
        return cells + draft_base(self.wish, self.draft_cells)

    @property
    def tree(self) -> int:
        return self.shape.n_vocab * TREE_BYTES

    @property
    def stock(self) -> int:
        return self.wish.stock_bytes * (2 if self.lane_cells else 1)

    @property
    def total(self) -> int:
        own = self.cells + self.compute + self.stock + self.tree + self.draft
        return self.shape.mapped_bytes + own + self.host_cache

    def __str__(self) -> str:
        lane = f", {self.lane_cells} of them of the prefill lane" if self.lane_cells else ""
        cells = self.n_cells + self.lane_cells
        parts = [
            f"model {self.shape.mapped_bytes // MIB} MiB",
            f"{cells} cells x {self.shape.bytes_per_cell} bytes{lane} = {self.cells // MIB} MiB",
            f"buffers of a step {self.compute // MIB} MiB",
            f"buffers of saved states {self.stock // MIB} MiB",
        ]
        if self.tree >= MIB:
            parts.append(f"vocabulary for grammars {self.tree // MIB} MiB")
        if self.draft:
            parts.append(f"draft model {self.draft // MIB} MiB")
        if self.host_cache:
            parts.append(f"host cache {self.host_cache // MIB} MiB")
        return f"{' + '.join(parts)} = {self.total // MIB} MiB"


def compute_bytes(shape: ModelShape, wish: Wish, cells_in_sight: int) -> int:
    """Bytes of the buffers of one step over so many cells: an upper bound.

    The library reckons with a micro-batch that is a multiple of the number of sequences.
    """
    n_tokens = wish.n_ubatch + wish.parallel + wish.most_parked + wish.n_scratch
    n_masks = 2 if shape.has_window else 1
    per_cell = 2 * n_masks if wish.flash_attention else 4 * (shape.n_head + n_masks)
    per_token = max(shape.n_vocab * 4, cells_in_sight * per_cell)
    return n_tokens * (per_token + 4 * _VECTORS_PER_TOKEN * shape.n_embd)


def draft_base(wish: Wish, n_cells: int) -> int:
    """Bytes of the draft model but for its cells: weights and buffers; 0 without one."""
    if wish.draft is None:
        return 0
    outputs = wish.parallel * wish.draft.n_vocab * 4
    return wish.draft.mapped_bytes + compute_bytes(wish.draft, wish, n_cells) + outputs


def fit(shape: ModelShape, wish: Wish, free_bytes: int) -> MemoryFit:
    """Choose context, cells, parked sequences and host cache.

    free_bytes: what is free before the weights are counted. Without wishes the cells take at most
    a quarter of what weights and a step's buffers leave; what was asked for may take up to
    USABLE_SHARE of all.

    Raises:
        ConfigError: not even that holds what was asked for. The message shows the arithmetic;
            param is ctx, parallel or host_cache_mib.
    """
    wish = replace(wish, stock_bytes=min(MOST_STOCK, int(free_bytes * STOCK_SHARE)))
    asked_cache = (wish.host_cache_mib or 0) * MIB
    usable = int(free_bytes * USABLE_SHARE)
    most = _most_tokens(shape, wish, usable - asked_cache)
    n_ctx = wish.ctx if wish.ctx is not None else _modest_ctx(shape, wish, free_bytes, most)
    if n_ctx > most:
        raise _refusal(shape, wish, max(n_ctx, 1), most, free_bytes)
    chosen = _spread(shape, wish, n_ctx, usable - asked_cache, _modest(shape, wish, free_bytes))
    left = max(0, usable - chosen.total)
    cache = min(DEFAULT_HOST_CACHE_MIB * MIB, left // 2)
    cache = asked_cache if wish.host_cache_mib is not None else cache - cache % MIB
    chosen = replace(chosen, host_cache=cache)
    return MemoryFit(
        n_ctx=n_ctx,
        n_cells=chosen.n_cells,
        n_parked=chosen.n_parked,
        lane_cells=chosen.lane_cells,
        host_cache_bytes=cache,
        stock_bytes=wish.stock_bytes,
        draft_cells=chosen.draft_cells,
        arithmetic=f"{chosen}; {free_bytes // MIB} MiB free",
    )


def sharing_of(room: MemoryFit, parallel: int) -> str:
    """One line, for people: how many requests of full length the cells hold at a time."""
    n_full = max(1, room.n_cells // max(room.n_ctx, 1))
    return (
        f"{parallel} requests share {room.n_cells} cells: {n_full} of {room.n_ctx} tokens at a "
        "time, more that are shorter; what does not fit waits its turn"
    )


def _least(shape: ModelShape, wish: Wish, n_ctx: int) -> _Sum:
    """The cheapest way to give every request n_ctx tokens.

    In a unified pool requests share the cells of one; streams have cells of their own each.
    """
    cells = round_up(n_ctx)
    n_streams = 1 if wish.kv_unified else wish.parallel
    n_parked = wish.most_parked if wish.kv_unified else 0
    return _Sum(shape, wish, n_ctx, cells * n_streams, n_parked)


def _most_tokens(shape: ModelShape, wish: Wish, budget: int) -> int:
    """The largest n_ctx, in whole CELL_STEPs, whose least sum stays within the budget; 0: none."""
    low, high = 0, 1
    while _least(shape, wish, high * CELL_STEP).total <= budget and high < 1 << 24:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if _least(shape, wish, middle * CELL_STEP).total <= budget:
            low = middle
        else:
            high = middle
    return low * CELL_STEP


def _modest(shape: ModelShape, wish: Wish, free_bytes: int) -> int:
    """What may be spent in all when nobody asked: what the least context costs, weights and a
    step's buffers among it, and a share of what that leaves.
    """
    least = _least(shape, wish, CELL_STEP).total
    return least + int(max(0, free_bytes - least) * POOL_SHARE)


def _modest_ctx(shape: ModelShape, wish: Wish, free_bytes: int, most: int) -> int:
    """The context when nobody asked for one: at least CELL_STEP, which may not fit."""
    affordable = min(_most_tokens(shape, wish, _modest(shape, wish, free_bytes)), most)
    if not wish.kv_unified:
        affordable = min(affordable, max(_round_down(POOL_MOST // wish.parallel), 2048))
    return min(shape.n_ctx_train, max(affordable, CELL_STEP))


def _spread(shape: ModelShape, wish: Wish, n_ctx: int, budget: int, modest: int) -> _Sum:
    """Cells beyond the least, as many as help and stay within what is modest."""
    least = _least(shape, wish, n_ctx)
    budget = min(budget, max(modest, least.total))
    spare = max(0, budget - least.total) // max(shape.bytes_per_cell, 1)
    if wish.kv_unified:
        enough = max(n_ctx, POOL_ENOUGH, min(wish.parallel * POOL_EACH, POOL_MOST))
        enough = min(enough, wish.parallel * n_ctx)
        n_cells = min(round_up(enough), least.n_cells + _round_down(spare))
        return _within(replace(least, n_cells=max(n_cells, least.n_cells)), budget, least.n_cells)
    per_stream = round_up(n_ctx)
    spare = min(spare, max(0, POOL_MOST - least.n_cells))
    n_parked = min(wish.most_parked, spare // per_stream)
    return replace(least, n_parked=n_parked, n_cells=least.n_cells + n_parked * per_stream)


def _within(chosen: _Sum, budget: int, least: int) -> _Sum:
    """The same with fewer cells until the step's buffers, which grow with them, fit too."""
    while chosen.total > budget and chosen.n_cells > least:
        chosen = replace(chosen, n_cells=max(least, _round_down(chosen.n_cells * 7 // 8)))
    return chosen


def _refusal(shape: ModelShape, wish: Wish, n_ctx: int, most: int, free_bytes: int) -> ConfigError:
    cache = (wish.host_cache_mib or 0) * MIB
    needed = replace(_least(shape, wish, n_ctx), host_cache=cache)
    usable = int(free_bytes * USABLE_SHARE)
    what, param, advice = f"a context of {n_ctx} tokens", "ctx", f"at most {most} tokens fit"
    if cache and needed.total - cache <= usable:
        what, param = f"a host cache of {cache // MIB} MiB beside {what}", "host_cache_mib"
        advice = f"at most {max(0, usable - needed.total + cache) // MIB} MiB fit"
    elif not wish.kv_unified and wish.parallel > 1:
        fits = _most_parallel(shape, wish, n_ctx, usable - cache)
        what = f"{wish.parallel} requests with {what} each"
        param = "ctx" if wish.ctx is not None and not fits else "parallel"
        advice += f" with {wish.parallel} requests at a time, {fits} requests with {n_ctx} tokens"
    elif most == 0:
        advice = "not even 256 tokens fit: free memory, or take a smaller model"
    return ConfigError(
        f"{what} does not fit into memory: {needed}; {free_bytes // MIB} MiB is free, of which "
        f"{usable // MIB} MiB can be used: {advice}",
        param=param,
    )


def _most_parallel(shape: ModelShape, wish: Wish, n_ctx: int, budget: int) -> int:
    fitting = (
        n
        for n in range(wish.parallel - 1, 0, -1)
        if _least(shape, replace(wish, parallel=n), n_ctx).total <= budget
    )
    return next(fitting, 0)


def _round_down(n: int) -> int:
    return n - n % CELL_STEP


def round_up(n: int) -> int:
    """To whole CELL_STEPs, as llama.cpp does."""
    return _round_down(n + CELL_STEP - 1)


def free_memory(available: int, cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Free bytes: what the system has available, and no more than this container's limit leaves.

    available: MemAvailable. Files in the page cache count as free in both.
    """
    try:
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        if limit == "max":
            return available
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        stat = (cgroup / "memory.stat").read_text(encoding="ascii").split()
        files = dict(zip(stat[::2], stat[1::2], strict=True))
        cached = int(files["inactive_file"]) + int(files["active_file"])
        return max(0, min(available, int(limit) - used + cached))
    except (OSError, ValueError, KeyError):
        return available  # no limit, or an older kind of container
