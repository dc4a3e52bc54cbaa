"""What a GPU computes in a step of training, kernel by kernel: how many are started, and how long they take.

    benches/kernels.py RETORT_BINARY CONFIG [--device cuda] [--only-count] [--set KEY=VALUE ...]

Trains for an epoch, so that what is tuned is tuned, then for one and for two, and shows the second one's
share, by the step. Kernels are timed one by one, which keeps them from overlapping: their times add up to
more than a step has. `--only-count` does not time them, so their number is all there is. What an evaluation
in the second epoch computes is counted, too. Paths in CONFIG have to be absolute.
"""

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

UNITS = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
TIMED = re.compile(r"\| ([0-9.]+)(ns|µs|ms|s) +\| (.*)")
COUNTED = re.compile(r"Executing (.*)")
SHOWN = 40


def kernels(arguments: argparse.Namespace, folder: Path, epochs: int) -> tuple[dict, int]:
    """Starts and seconds of each kernel, and how many steps were made."""
    log, run = folder / f"{epochs}.log", folder / f"run{epochs}"
    level = "minimal" if arguments.only_count else "basic"
    (folder / "cubecl.toml").write_text(f'[profiling.logger]\nlevel = "{level}"\nfile = "{log}"\n')
    settings = [f"schedule.epochs={epochs}", *arguments.settings]
    command = [arguments.retort, "train", "--device", arguments.device, "--config", arguments.config]
    command += [word for setting in settings for word in ("--set", setting)] + ["--out", str(run)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr}")
    found = collections.defaultdict(lambda: [0, 0.0])
    for line in log.read_text().splitlines():
        if timed := TIMED.search(line):
            seconds, name = float(timed[1]) * UNITS[timed[2]], timed[3]
        elif counted := COUNTED.search(line):
            seconds, name = 0.0, counted[1]
        else:
            continue
        # Of a kernel's name what it is, not for which types and sizes.
        name = re.split(r"[<{(|]", name)[0].split("::")[-1].strip()
        name = re.sub(r"_[0-9a-f]{6,}$", "", name)
        found[name][0] += 1
        found[name][1] += seconds
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return found, sum("loss" in line for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("retort", type=lambda path: Path(path).resolve())
    parser.add_argument("config", type=lambda path: Path(path).resolve())
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only-count", action="store_true")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.setdefault("RETORT_CACHE", f"{scratch}/cache")
        for name in ("warm", "measured"):
            (Path(scratch) / name).mkdir()
        kernels(arguments, Path(scratch) / "warm", 1)
        one, few = kernels(arguments, Path(scratch) / "measured", 1)
        two, many = kernels(arguments, Path(scratch) / "measured", 2)
    steps = many - few
    of_step = {
        name: ((count - one[name][0]) / steps, (seconds - one[name][1]) / steps)
        for name, (count, seconds) in two.items()
    }
    starts, seconds = (sum(column) for column in zip(*of_step.values()))
    print(f"{steps} steps; of one:\n\n| kernel | starts | ms |\n|---|---|---|")
    print(f"| all | {starts:.1f} | {seconds * 1e3:.3f} |")
    in_order = sorted(of_step.items(), key=lambda one: (-one[1][1], -one[1][0]))
    for name, (starts, seconds) in in_order[:SHOWN]:
        print(f"| {name} | {starts:.1f} | {seconds * 1e3:.3f} |")


if __name__ == "__main__":
    main()
