"""Take the tour of a running server and print one line per step."""

import asyncio
import sys

from tests.tour.steps import tour

if __name__ == "__main__":
    url, model = sys.argv[1:]
    verdicts = asyncio.run(tour(url, model))
    for name, verdict in verdicts.items():
        print(f"{name:28} {verdict}")
    sys.exit(any(verdict.startswith("failed") for verdict in verdicts.values()))
