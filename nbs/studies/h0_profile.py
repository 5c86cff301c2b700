"""Where the engine's time goes: `python nbs/studies/h0_profile.py [--version NAME]`.

Adds the parts of one run on each cloud to `h0_profile.csv` beside this file, in place of
those of the same version. With another version of the package on `PYTHONPATH` and a name
for it, the table compares the two.
"""

import argparse
import cProfile
import os
import pstats
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from h0_benchmark import cloud, cpu_name, half, timed

RESULTS = Path(__file__).with_name("h0_profile.csv")
# functions that stand for a part, under the names that they have or had; none calls another
PARTS = {
    "products": {"mm", "addmm"},
    "rows made ready": {"block", "_shadow", "_shadow_basis", "frame", "right_factors"},
    "Prim": {"prim_edges", "_prim"},
    "trees and their order": {
        "leaf_order",
        "tree_of_edges",
        "_leaf_order",
        "_tree_of_edges",
    },
    "exact lengths": {"_squared_lengths"},
}


def seconds_by_part(x, **options):
    "Seconds of one run, part by part; what is in no part is `comparing and the rest`."
    from topotransfer.spanning_tree import minimum_spanning_tree

    profile = cProfile.Profile()
    profile.enable()
    minimum_spanning_tree(x, progress=False, **options)
    profile.disable()
    stats = pstats.Stats(profile)
    names = {key: key[2].split(".")[-1].rstrip(">") for key in stats.stats}
    parts = {
        part: sum(stats.stats[key][3] for key, name in names.items() if name in of)
        for part, of in PARTS.items()
    }
    return parts | {"comparing and the rest": stats.total_tt - sum(parts.values())}


def rows(version):
    "The parts of each cloud, on all rungs and on float32 alone, the fastest of three runs."
    for name in ("clustered", "collapsed", "unclustered"):
        x = np.ascontiguousarray(cloud(name, 10_000, 2_048))
        yardstick = min(timed(half, x)[0] for _ in range(4))
        for rungs in [None] if version == "before" else [None, ("float32",)]:
            options = {} if rungs is None else dict(precisions=rungs)
            seconds_by_part(x[:3000], **options)
            runs = [seconds_by_part(x, **options) for _ in range(3)]
            for part, seconds in min(runs, key=lambda run: sum(run.values())).items():
                yield dict(
                    version=version,
                    rungs="all" if rungs is None else rungs[0],
                    cloud=name,
                    part=part,
                    seconds=round(seconds, 4),
                    half_seconds=round(yardstick, 4),
                    cpu=cpu_name(),
                    cores=os.cpu_count(),
                )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--version", default="now", help="a name for what is measured")
    version = parser.parse_args().version
    known = pd.read_csv(RESULTS) if RESULTS.exists() else pd.DataFrame()
    if len(known):
        known = known[known["version"] != version]
    table = pd.concat([known, pd.DataFrame(rows(version))])
    table.to_csv(RESULTS, index=False, lineterminator="\n")
    print(table[table["version"] == version].to_string(), file=sys.stderr)


if __name__ == "__main__":
    main()
