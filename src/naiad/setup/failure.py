"""The error that ends a set-up: one sentence that says what to do."""

from __future__ import annotations

from naiad.errors import NaiadError


class SetupError(NaiadError):
    """The engine cannot be built or installed here as things are."""

    code = "setup"
