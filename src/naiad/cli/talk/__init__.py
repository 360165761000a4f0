"""`naiad run` and `naiad chat`: a conversation at the terminal, over the public API."""
