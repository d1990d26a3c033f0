"""One progress bar for every place: alive in a notebook or terminal, a line every 30 seconds in a headless run."""

import os
import sys
from collections.abc import Iterator

import tqdm
import tqdm.auto


def bar(total: int, unit: str, **options) -> tqdm.tqdm:
    """A tqdm bar. Headless (ROAR_HEADLESS is set): plain, to stderr, a line at most every 30 seconds."""
    if os.environ.get("ROAR_HEADLESS"):
        return tqdm.tqdm(total=total, unit=unit, file=sys.stderr, mininterval=30, maxinterval=60, **options)
    return tqdm.auto.tqdm(total=total, unit=unit, **options)


def each(items: list, unit: str) -> Iterator:
    """The items one by one under a bar."""
    with bar(len(items), unit) as shown:
        for item in items:
            yield item
            shown.update()
