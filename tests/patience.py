"""How long tests wait for what should come."""

from __future__ import annotations

#: Seconds. What works is there long before, on any machine however busy: only what hangs takes
#: them. A test that means a short time says so by a number of its own.
PATIENCE_S = 300.0
