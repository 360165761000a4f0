"""One package per wire dialect: the only place where wire field names exist."""
