"""Whether a long run's memory stays flat: trains the tests' two-layer BERT on the demo for so many minutes,
looks at the process's memory, and an NVIDIA GPU's, every few seconds, and prints what it saw.

    benches/long_run.py RETORT_BINARY [--device cpu] [--minutes 30] [--base tests/golden/bert]
                        [--set KEY=VALUE ...]

The run is stopped when the time is over. Memory is the process's resident set and, where nvidia-smi is
there, what the GPU has given to it.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 5  # between two looks
MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("retort", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--base", default="tests/golden/bert")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        settings = [
            f"model.init={arguments.base}",
            "data.max_tokens=64",
            "schedule.epochs=1000000",
            "evaluation.every_steps=200",
            *arguments.settings,
        ]
        command = [arguments.retort.resolve(), "train", "--device", arguments.device, "--out", run]
        for setting in settings:
            command += ["--set", setting]
        with open(Path(folder) / "log", "w") as log:
            process = subprocess.Popen(command, cwd=ROOT, stderr=log)
        looks = watched(process, arguments.minutes * 60)
        if process.poll() is not None:
            sys.exit(f"the run ended by itself:\n{(Path(folder) / 'log').read_text()[-2000:]}")
        process.send_signal(signal.SIGTERM)
        process.wait()
        steps = [json.loads(line) for line in open(run / "metrics.jsonl") if line.endswith("\n")]
        report(looks, sum("loss" in step for step in steps))


def watched(process: subprocess.Popen, seconds: float) -> list[tuple[float, int, int | None]]:
    """When (in seconds), resident bytes, the GPU's bytes."""
    looks = []
    started = time.monotonic()
    while time.monotonic() - started < seconds and process.poll() is None:
        time.sleep(SECONDS)
        resident = of_process(process.pid)
        if resident:
            looks.append((time.monotonic() - started, resident, of_gpu(process.pid)))
    return looks


def of_process(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def of_gpu(pid: int) -> int | None:
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    rows = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()
    of_all = [row.split(", ") for row in rows]
    of_it = [int(used) for row_pid, used in of_all if row_pid == str(pid) and used.isdigit()]
    if of_it:
        return of_it[0] * MIB
    # In a container a process has another number: the whole GPU then.
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    used = subprocess.run(query, capture_output=True, text=True).stdout.split()
    return int(used[0]) * MIB if used and used[0].isdigit() else None


def report(looks: list[tuple[float, int, int | None]], steps: int) -> None:
    print(f"{steps} steps in {looks[-1][0] / 60:.1f} minutes; MiB")
    print("| memory | after a minute | the least since | the most since | at the end |\n|---|---|---|---|---|")
    later = [look for look in looks if look[0] >= 60] or looks
    for name, place in (("process", 1), ("GPU", 2)):
        values = [look[place] for look in later if look[place] is not None]
        if values:
            shown = [values[0], min(values), max(values), values[-1]]
            print(f"| {name} | " + " | ".join(f"{value / MIB:.0f}" for value in shown) + " |")
            tenths = [values[len(values) * part // 10] for part in range(10)] + values[-1:]
            print(f"{name}, in tenths: " + ", ".join(f"{value / MIB:.0f}" for value in tenths), file=sys.stderr)


if __name__ == "__main__":
    main()
