"""Replay one simulated run: `python tests/simulation/replay.py --seed N [-v]`; -v prints its whole story."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.sim_run import Run, simulate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("-v", "--verbose", action="store_true", help="print the whole story")
    asked = parser.parse_args()
    runs: list[Run] = []
    try:
        simulate(asked.seed, runs.append)
    except AssertionError as error:
        failure: AssertionError | None = error
    else:
        failure = None
    if asked.verbose:
        print("\n".join(runs[0].world.story))
    print(f"seed {asked.seed}: {failure or 'every law held'}")
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
