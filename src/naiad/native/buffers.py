"""Memory for saved states that has been written to before it is needed.

New memory is slow: the kernel finds and clears each page when it is first written, and on a virtual
machine the host may have to find it too (measured: 1 to 9 ms for a block of 3 MB, which takes
0.3 ms to save). States are saved between the steps of running streams, so a thread that gives way
to everybody prepares memory in advance, of the sizes that were asked for last.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque

import llama_cpp as _lib  # noqa: F401 - before NumPy, as everywhere in this room
import numpy as np
import numpy.typing as npt

from naiad.native.threads import give_way

import ctypes  # isort: skip

#: Smaller pieces are not worth the trouble.
LEAST = 256 << 10

Buffer = npt.NDArray[np.uint8]


class TouchedBuffers:
    """A stock of prepared memory. `close` ends its thread.

    What is taken belongs to the taker and does not come back.
    """

    def __init__(self, limit: int) -> None:
        """limit: bytes in stock at most; 0 for none."""
        self._limit = limit
        self._changed = threading.Condition()  # over all below
        self._stock: OrderedDict[int, list[Buffer]] = OrderedDict()  # by size, asked for last: last
        self._wanted: deque[int] = deque()  # at most `limit` bytes of it
        self._is_making = False
        self._keeper: threading.Thread | None = None
        self._is_closed = False
        self.n_bytes = 0

    def take(self, size: int) -> Buffer:
        """An array of `size` bytes with anything in it. Prepared if there is one, else new."""
        if size < LEAST:
            return np.empty(size, np.uint8)
        rounded = rounded_up(size)
        with self._changed:
            prepared = self._stock.get(rounded)
            buffer = prepared.pop() if prepared else None
            if buffer is not None:
                self.n_bytes -= rounded
            self._want(rounded)
        return np.empty(size, np.uint8) if buffer is None else buffer[:size]

    def settle(self, timeout_s: float) -> bool:
        """Wait until all that was asked for is in stock, at most so long. False: it is not."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not self._wanted and not self._is_making, timeout_s
            )

    def close(self) -> None:
        """Safe to call twice."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._keeper is not None:
            self._keeper.join()

    def _want(self, size: int) -> None:
        """One more of this size should be there the next time."""
        if self._is_closed or size > self._limit:
            return
        self._stock.setdefault(size, [])
        self._stock.move_to_end(size)
        self._wanted.append(size)
        while sum(self._wanted) > self._limit:  # where nothing is left for the thread, they add up
            self._wanted.popleft()
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._keep, name="naiad-memory", daemon=True)
            self._keeper.start()
        self._changed.notify_all()

    def _keep(self) -> None:
        give_way()
        while (size := self._next()) is not None:
            buffer = np.empty(size, np.uint8)
            # Not NumPy's fill, which keeps the interpreter to itself.
            ctypes.memset(buffer.ctypes.data, 0, size)
            self._put(size, buffer)

    def _next(self) -> int | None:
        with self._changed:
            self._changed.wait_for(lambda: self._wanted or self._is_closed)
            if self._is_closed:
                return None
            self._is_making = True
            return self._wanted.popleft()

    def _put(self, size: int, buffer: Buffer) -> None:
        with self._changed:
            while self.n_bytes + size > self._limit:
                self._drop_one()
            self._stock.setdefault(size, []).append(buffer)
            self.n_bytes += size
            self._is_making = False
            self._changed.notify_all()

    def _drop_one(self) -> None:
        """Of the size that was not asked for for longest."""
        oldest = next(size for size, buffers in self._stock.items() if buffers)
        self._stock[oldest].pop()
        self.n_bytes -= oldest


def bytes_held(buffer: Buffer) -> int:
    """The bytes of memory that an array keeps: those of the one that it is the beginning of."""
    whole = buffer.base
    return whole.nbytes if isinstance(whole, np.ndarray) else buffer.nbytes


def rounded_up(size: int) -> int:
    """The next of four sizes in each doubling, so that few sizes are kept: at most a quarter more.

    size: 4 bytes or more.
    """
    step = 1 << max((size - 1).bit_length() - 3, 0)
    return -(-size // step) * step
