"""The command line: flags to a frozen Config, and nothing else of substance."""
