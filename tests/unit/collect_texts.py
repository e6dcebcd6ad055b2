"""A collection of 1,000 short texts in a process of its own, for tests that end it by force or measure its memory.

Usage: python collect_texts.py STORE SITE... Prints the result, and the most memory that it held beside the model, MB.
"""

import sys
import threading
import time
from itertools import product

import psutil

import labkit as lk

# fmt: off
NAMES = ["Mary", "John", "Alice", "Peter", "Lucy", "Tom", "Anna", "Paul", "Kate", "Simon"]
PLACES = ["store", "park", "station", "garden", "school", "beach", "office", "market", "library", "kitchen"]
THINGS = [
    "a book", "some milk", "two apples", "a red hat", "the old map", "a cup of tea", "bread", "a letter", "flowers",
    "a new lamp",
]
# fmt: on
TEXTS = [f"{name} went to the {place} for {thing}" for name, place, thing in product(NAMES, PLACES, THINGS)]
SETTINGS = {"dtype": "float32", "progress": False}


def main(store: str, *read: str) -> None:
    lm = lk.load(progress=False)
    lm.run(TEXTS[:8], logits="last")
    process, over = psutil.Process(), threading.Event()
    before = most = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not over.is_set():
            most = max(most, process.memory_info().rss)
            time.sleep(0.005)

    watching = threading.Thread(target=watch)
    watching.start()
    shard = 50 if len(read) == 1 else None
    print(lk.collect(lm, TEXTS, read=read, store=store, shard=shard, **SETTINGS), flush=True)
    over.set()
    watching.join()
    print((most - before) >> 20, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
