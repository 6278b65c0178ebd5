"""Overhead of W&B: a digits run of depth 20 with offline W&B compared with metrics.csv alone, in alternation.

    python experiments/overhead/wandb_overhead.py [pairs]

All runs share a process, so the ratio excludes the import of W&B's client and the start of its service, which happen
once per process. The first line of the output includes them.
"""

import argparse
from statistics import median

import torch
from overhead import seconds, through_lightning

from plainres.cli.arguments import integer
from plainres.config.compose import compose


def main(pairs: int) -> None:
    torch.set_num_threads(1)
    options = ["model.width=8", "model.depth=20"]
    configs = {name: compose([*options, f"logger={name}"])[0] for name in ("csv", "wandb")}
    digests: set[str] = set()
    first = {name: seconds(through_lightning, config, digests) for name, config in configs.items()}
    print(f"first in the process: csv {first['csv']:.2f} s, W&B {first['wandb']:.2f} s", flush=True)
    times = []
    for pair in range(pairs):
        order = list(configs)[:: 1 if pair % 2 else -1]
        taken = {name: seconds(through_lightning, configs[name], digests) for name in order}
        times.append((taken["wandb"], taken["csv"]))
        print(f"pair {pair + 1}: W&B {times[-1][0]:.2f} s, csv {times[-1][1]:.2f} s", flush=True)
    ratios = sorted(with_wandb / with_csv for with_wandb, with_csv in times)
    assert len(digests) == 1, "runs with and without W&B have different final weights"
    print(f"ratio: median {median(ratios):.3f}, from {ratios[0]:.3f} to {ratios[-1]:.3f}, {pairs} pairs; equal weights")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=integer(1), nargs="?", default=7, help="pairs of runs (default: 7)")
    main(parser.parse_args().pairs)
