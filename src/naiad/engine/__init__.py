"""The worker process: knows tokens; knows nothing of HTTP or of any dialect."""
