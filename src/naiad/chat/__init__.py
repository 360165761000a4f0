"""Chat semantics: templates and what a model's text means. Pure; no I/O."""
