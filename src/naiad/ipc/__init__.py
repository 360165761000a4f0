"""What crosses the process border, and how: frozen messages over an inherited socketpair."""
