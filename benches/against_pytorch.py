"""Trains and scores the same pairs with Retort and with PyTorch on the CPU, in turns, and prints the
ratios.

    benches/against_pytorch.py RETORT_BINARY BASE_DIR [--rounds 3] [--queries 80] [--threads 2]

BASE_DIR is a BERT in Hugging Face's layout (that of all-MiniLM-L6-v2, say, from Retort's cache). The
packages are those of `just test-interop`: target/interop/st6/bin/python runs this.

The pairs are made up of words of the vocabulary. Their lengths are drawn as those of real search logs
are: log-normal, the median about 60 tokens, none below 20 or above 256. A step is 32 pairs, eight
documents each of four queries. PyTorch is measured twice: padded to the longest pair of a step, as
CrossEncoderTrainer does unless told otherwise, and with the pairs of all steps sorted by length, so
that next to nothing is padded (at the price that a step no longer compares a query's documents).
"""

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch  # noqa: E402
import transformers  # noqa: E402
from compare.labels import seal  # noqa: E402

SEED = 42
DOCUMENTS = 8  # of a query
STEP = 32  # pairs
LONGEST = 256
SHORTEST = 20
MEDIAN = 60
SPREAD = 0.6  # of the logarithm
WARM_UP = 2  # steps that are not counted
SPECIAL = 3  # tokens of a pair that are no words


class Pair:
    """A query and a document of so many words, each a token."""

    def __init__(self, draw: random.Random, words: list[str], query: list[str]):
        length = round(MEDIAN * math.exp(draw.gauss(0, SPREAD)))
        length = min(max(length, SHORTEST), LONGEST)
        self.query = " ".join(query)
        self.document = " ".join(draw.choices(words, k=length - SPECIAL - len(query)))
        self.target = draw.random()


def make_pairs(base: Path, queries: int) -> list[Pair]:
    draw = random.Random(SEED)
    vocabulary = (base / "vocab.txt").read_text(encoding="utf-8").splitlines()
    words = [w for w in vocabulary if w.isascii() and w.isalpha() and len(w) > 2]
    pairs = []
    for _ in range(queries):
        query = draw.choices(words, k=draw.randint(2, 8))
        pairs += [Pair(draw, words, query) for _ in range(DOCUMENTS)]
    return pairs


class Retort:
    """The job's files, and the binary run on them."""

    def __init__(self, binary: str, base: Path, pairs: list[Pair], folder: Path):
        self.binary, self.base, self.pairs, self.folder = binary, base, pairs, folder
        self.runs = 0
        rows = list(enumerate(pairs))
        write = self.write_lines
        write("corpus.jsonl", [{"_id": f"d{n}", "text": p.document} for n, p in rows])
        write("queries.jsonl", [{"_id": f"q{n // DOCUMENTS}", "text": p.query} for n, p in rows[::DOCUMENTS]])
        write("few.jsonl", [self.ids(n) | {"source": "random"} for n in (0, 1)])
        write("score.jsonl", [{"query": p.query, "document": p.document} for p in pairs])
        write("one.jsonl", [{"query": pairs[0].query, "document": pairs[0].document}])
        (folder / "qrels").mkdir()
        for split in ("dev", "test"):
            gains = "query-id\tcorpus-id\tscore\nq0\td0\t1\n"
            (folder / f"qrels/{split}.tsv").write_text(gains)
        judgements = [self.ids(n) | {"probabilities": [1 - p.target, p.target]} for n, p in rows]
        seal(binary, folder, judgements, folder / "labels")
        (folder / "train.toml").write_text(
            f'name = "bench"\nseed = {SEED}\n'
            f'[data]\ncollection = "{folder}"\nlabels = "{folder}/labels"\nmax_tokens = {LONGEST}\n'
            f'[model]\ninit = "{base}"\ndropout = 0.0\n'
            "[optimizer]\nlearning_rate = 1e-5\n"
            f"[schedule]\nepochs = 1\ndocuments_per_query = {DOCUMENTS}\n"
            f"queries_per_step = {STEP // DOCUMENTS}\nwarmup = 0.1\ntokens_per_pass = 1024\n"
            f'[evaluation]\nsplit = "dev"\ncandidates = "{folder}/few.jsonl"\nevery_steps = 1000000\n'
            f'[verdict]\nsplit = "test"\ncandidates = "{folder}/few.jsonl"\nrelevant_gain = 1\n'
        )

    def write_lines(self, name: str, rows: list[dict]) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder / name).write_text(text)

    @staticmethod
    def ids(number: int) -> dict:
        return {"query_id": f"q{number // DOCUMENTS}", "document_id": f"d{number}"}

    def run(self, *arguments: str, stdin: Path | None = None) -> float:
        started = time.perf_counter()
        with open(stdin or os.devnull, "rb") as lines:
            done = subprocess.run(
                [self.binary, *arguments], stdin=lines, capture_output=True, check=False
            )
        if done.returncode != 0:
            sys.exit(f"retort {' '.join(arguments)}: {done.stderr.decode()}")
        return time.perf_counter() - started

    def train(self) -> float:
        """Pairs a second, by the run's own metrics."""
        self.runs += 1
        out = self.folder / f"run{self.runs}"
        self.run("train", "--device", "cpu", "--config", f"{self.folder}/train.toml", "--out", str(out))
        lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        steps = [line for line in lines if "loss" in line][WARM_UP:]
        return sum(step["pairs"] for step in steps) / sum(step["seconds"] for step in steps)

    def score(self) -> float:
        """Pairs a second; what one pair takes, which is starting and loading, does not count."""
        export, folder = f"{self.folder}/run{self.runs}/export", self.folder
        one = self.run("score", "--device", "cpu", export, stdin=folder / "one.jsonl")
        all_of_them = self.run("score", "--device", "cpu", export, stdin=folder / "score.jsonl")
        return (len(self.pairs) - 1) / (all_of_them - one)


class PyTorch:
    def __init__(self, base: Path, pairs: list[Pair]):
        load = transformers.AutoModelForSequenceClassification.from_pretrained
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(base))
        # The model's own file may say to pad all to one length.
        tokenizer.backend_tokenizer.no_padding()
        self.model = load(str(base), num_labels=1)
        self.pad = tokenizer.pad
        queries, documents = [p.query for p in pairs], [p.document for p in pairs]
        encoded = tokenizer(queries, documents, truncation=True, max_length=LONGEST)
        self.rows = [
            {name: values[row] for name, values in encoded.items()} for row in range(len(pairs))
        ]
        self.targets = torch.tensor([p.target for p in pairs])
        self.as_drawn = list(range(len(pairs)))
        self.by_length = sorted(self.as_drawn, key=lambda row: len(self.rows[row]["input_ids"]))

    def steps(self, order: list[int]):
        for first in range(0, len(order), STEP):
            rows = order[first : first + STEP]
            batch = self.pad([self.rows[row] for row in rows], return_tensors="pt")
            yield batch, self.targets[rows]

    def train(self, order: list[int]) -> float:
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5)
        steps = list(self.steps(order))
        # Those that warm up are in the middle by length, and made once more.
        pairs = seconds = 0
        for number, (batch, targets) in enumerate(steps[len(steps) // 2 :][:WARM_UP] + steps):
            started = time.perf_counter()
            scores = self.model(**batch).logits[:, 0]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if number >= WARM_UP:
                pairs += len(targets)
                seconds += time.perf_counter() - started
        return pairs / seconds

    def score(self, order: list[int]) -> float:
        self.model.eval()
        with torch.inference_mode():
            for batch, _ in list(self.steps(order))[:WARM_UP]:
                self.model(**batch)
            started = time.perf_counter()
            for batch, _ in self.steps(order):
                self.model(**batch)
            return len(order) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("retort")
    parser.add_argument("base", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--queries", type=int, default=80)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    base = arguments.base.resolve()
    pairs = make_pairs(base, arguments.queries)
    torch_side = PyTorch(base, pairs)
    lengths = [len(row["input_ids"]) for row in torch_side.rows]
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{arguments.threads} threads; {len(pairs)} pairs of {min(lengths)} to {max(lengths)} "
        f"tokens, the median {statistics.median(lengths):.0f}, the mean {statistics.mean(lengths):.0f}"
    )
    padded, sorted_ = torch_side.as_drawn, torch_side.by_length
    with tempfile.TemporaryDirectory() as folder:
        retort_side = Retort(arguments.retort, base, pairs, Path(folder))
        for what, ours, theirs in (
            ("training", retort_side.train, torch_side.train),
            ("scoring", retort_side.score, torch_side.score),
        ):
            rounds = []
            for _ in range(arguments.rounds):
                rounds.append((ours(), theirs(padded), theirs(sorted_)))
                print(f"{what}: " + ", ".join(f"{rate:.1f}" for rate in rounds[-1]), flush=True)
            for place, name in ((1, "padded as drawn"), (2, "sorted by length")):
                ratios = [one[0] / one[place] for one in rounds]
                rates = [statistics.median(column) for column in zip(*rounds)]
                print(
                    f"{what}, PyTorch {name}: {rates[place]:.1f} pairs/s, Retort {rates[0]:.1f}; "
                    f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                )


if __name__ == "__main__":
    main()
