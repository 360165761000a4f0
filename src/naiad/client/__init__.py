"""The front's view of an engine: a few verbs, and streams that cannot be mixed up."""
