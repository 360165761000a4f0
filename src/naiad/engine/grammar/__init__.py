"""Structured output: grammars compiled off the token path, and followed token by token."""
