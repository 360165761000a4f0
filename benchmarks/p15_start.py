"""P15: process start to ready, over the bare engine's load of the same model and context.

Both are started several times and the quickest of each counts; the first start reads the model
from the disk into memory for all.
"""

from __future__ import annotations

import sys

from common import Figure, bare, conclude, options, parse, serve, starter


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    args = parse(parser, repeat=1)
    model = starter()
    starts, loads = [], []
    for _ in range(args.repeat):
        with serve(model) as server:
            starts.append(server.started_in_s)
        engine = server.health["engine"]
        cells = ["--n-ctx", str(engine["pool_cells"]), "--seqs", str(engine["parallel"])]
        got = bare(model, engine, *cells, "--batch", "--prefill", "16", "--repeat", "1")
        loads.append(got["load_ms"] / 1000)
    ready, load = min(starts), min(loads)
    figures = [
        Figure("P15 start to ready, less bare load", ready - load, "s", 1.5, 0.5),
        Figure("start to ready", ready, "s"),
        Figure("bare load", load, "s"),
    ]
    return conclude(figures, args)


if __name__ == "__main__":
    sys.exit(main())
