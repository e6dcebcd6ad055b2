"""A sweep of 200 pairs on two Dask workers, in a process of its own, for a test that ends it by force.

Usage: python dask_sweep.py STORE. Prints the process ids of the workers once they run, and the mean at the end.
"""

import os
import sys

from distributed import Client, LocalCluster

import labkit as lk
from labkit.datasets import tasks

SITE = {"site": "resid_pre", "layers": [4, 24], "positions": [-5, -1]}


def pairs(lm: lk.LanguageModel) -> list[lk.PromptPair]:
    return tasks.task("indirect object").pairs(lm, n=200)


def main(store: str) -> None:
    lm = lk.load(progress=False)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        print(*client.run(os.getpid).values(), flush=True)
        sweep = lk.sweep(lm, pairs(lm), **SITE, executor=client, store=store, progress=False)
        print(sweep, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
