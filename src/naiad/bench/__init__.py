"""A load generator for streaming LLM servers: what a client sees, measured at the socket."""
