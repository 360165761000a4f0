"""naiad: a local LLM server whose streams carry their own tokens, all of them, once, in order."""

__version__ = "0.1.0"
