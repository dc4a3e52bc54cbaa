"""Trains the same cross-encoder on the same pairs with Retort, with sentence-transformers'
CrossEncoderTrainer and with a tuned PyTorch loop, in turns, and prints what each makes a second.

    benches/compare/speed.py RETORT_BINARY [--device cuda] [--models minilm bert-base] [--pairs 19200]
                             [--rounds 3] [--step 64] [--precision bf16] [--fused]
                             [--keep FOLDER]

The weights and the vocabulary are drawn by chance, so nothing is fetched. The lengths of pairs are those
of real search logs: log-normal, the median about 60 tokens, none above 512. A step is so many pairs,
eight documents a query. The tuned loop has `torch.compile`, scaled-dot-product attention, a fused AdamW
and pairs sorted by length in blocks of 32 steps; both of PyTorch's compute in bf16 on CUDA, as Retort
does. `--fused` has Retort train with fused attention as well. Rates are by the wall clock, Retort's reading of
pairs and all, without the first steps, which compile and tune. The first is shown by itself: Retort's from
the start of the command, in the first round with no kernels kept from earlier ones, then with them; the
others' from when the model is loaded. What is trained on and with stays in `--keep`, for benches/kernels.py.
It needs sentence-transformers, datasets and accelerate.
"""

import argparse
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import datasets  # noqa: E402
import sentence_transformers  # noqa: E402
import tokenizers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from labels import run, seal  # noqa: E402
from sentence_transformers.cross_encoder import (  # noqa: E402
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
    losses,
)

DOCUMENTS = 8  # of a query
LONGEST, SHORTEST, MEDIAN, SPREAD = 512, 12, 60, 0.7
WARM_UP = 20  # steps
SPECIAL = 3
MODELS = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128},
    "minilm": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
    "bert-base": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
}
# Dense bf16 operations a second of the cards that are likely, in 10^12.
PEAK = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "4090": 165.0}


def make_base(folder: Path, name: str) -> None:
    """A model with weights drawn by chance, and a tokenizer that makes a token of a word."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [f"w{n:05}" for n in range(30517)]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = transformers.BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=LONGEST)
    fast.save_pretrained(str(folder))
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=1,
        **MODELS[name],
    )
    transformers.BertForSequenceClassification(config).save_pretrained(str(folder))


def make_pairs(count: int) -> list[tuple[str, str, float]]:
    draw = random.Random(42)
    word = lambda: f"w{draw.randrange(30517):05}"  # noqa: E731
    pairs = []
    for _ in range(count // DOCUMENTS):
        query = [word() for _ in range(draw.randint(2, 8))]
        for _ in range(DOCUMENTS):
            length = round(MEDIAN * math.exp(draw.gauss(0, SPREAD)))
            length = min(max(length, SHORTEST), LONGEST) - SPECIAL - len(query)
            document = [word() for _ in range(max(length, 1))]
            pairs.append((" ".join(query), " ".join(document), draw.random()))
    return pairs


class Memory:
    """The most that a process and its children take of the card, in MiB."""

    def __init__(self, cuda: bool):
        self.most, self.ended, self.cuda = 0, threading.Event(), cuda
        self.before = self.used()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()

    def used(self) -> int:
        if not self.cuda:
            return 0
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        return int(subprocess.run(query, capture_output=True, text=True).stdout.split()[0])

    def watch(self) -> None:
        while not self.ended.wait(0.2):
            self.most = max(self.most, self.used() - self.before)

    def stop(self) -> int:
        self.ended.set()
        self.thread.join()
        return self.most


class Job:
    def __init__(self, arguments: argparse.Namespace, name: str, pairs: list, folder: Path):
        self.retort, self.device, self.step = arguments.retort, arguments.device, arguments.step
        self.precision, self.pairs, self.folder = arguments.precision, pairs, folder
        self.cuda = self.device == "cuda"
        self.base = folder / "base"
        self.base.mkdir(parents=True)
        make_base(self.base, name)
        self.runs = 0
        self.lengths = [len(q.split()) + len(d.split()) + SPECIAL for q, d, _ in pairs]
        self.write_files()

    def write_files(self) -> None:
        rows = list(enumerate(self.pairs))
        ids = lambda n: {"query_id": f"q{n // DOCUMENTS:06}", "document_id": f"d{n}"}  # noqa: E731
        write = lambda name, lines: (self.folder / name).write_text(  # noqa: E731
            "".join(json.dumps(line) + "\n" for line in lines)
        )
        write("corpus.jsonl", [{"_id": f"d{n}", "text": document} for n, (_, document, _) in rows])
        write("queries.jsonl", [{"_id": ids(n)["query_id"], "text": q} for n, (q, *_) in rows[::DOCUMENTS]])
        write("few.jsonl", [ids(n) | {"source": "random"} for n in (0, 1)])
        (self.folder / "qrels").mkdir()
        (self.folder / "qrels/dev.tsv").write_text("q000000\td0\t1\n")
        folder = self.folder
        judgements = [ids(n) | {"probabilities": [1 - t, t]} for n, (*_, t) in rows]
        seal(self.retort, folder, judgements, folder / "labels")
        (folder / "train.toml").write_text(
            f'name = "speed"\nseed = 1\n[data]\ncollection = "{folder}"\nlabels = "{folder}/labels"\n'
            f'max_tokens = {LONGEST}\n[model]\ninit = "{self.base}"\ndropout = 0.0\n'
            f'precision = "{self.precision}"\n[loss]\nbce = 1.0\n[optimizer]\nlearning_rate = 1e-5\n'
            f"[schedule]\nepochs = 1\ndocuments_per_query = {DOCUMENTS}\n"
            f"queries_per_step = {self.step // DOCUMENTS}\nwarmup = 0.1\ntokens_per_pass = 16384\n"
            f'[evaluation]\nsplit = "dev"\ncandidates = "{folder}/few.jsonl"\nevery_steps = 1000000\n'
            f'[verdict]\nsplit = "dev"\ncandidates = "{folder}/few.jsonl"\n'
        )

    def by_retort(self, attention: str = "decomposed") -> tuple[float, float]:
        """Pairs a second, and seconds to the first step."""
        self.runs += 1
        out = self.folder / f"run{self.runs}"
        config = f"{self.folder}/train.toml"
        setting = f"model.attention={attention}"
        job = ["--device", self.device, "--config", config, "--set", setting, "--out", str(out)]
        said = run(self.retort, "train", *job)
        lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        steps = [line for line in lines if "loss" in line]
        counted = steps[WARM_UP:]
        rate = sum(step["pairs"] for step in counted) / sum(step["seconds"] for step in counted)
        return rate, float(re.search(r"the first step took ([0-9.]+) s", said).group(1))

    def by_trainer(self) -> tuple[float, float]:
        model = CrossEncoder(str(self.base), num_labels=1, device=self.device, max_length=LONGEST)
        columns = dict(zip(("query", "document", "label"), map(list, zip(*self.pairs))))
        clock = Clock(self.cuda)
        with tempfile.TemporaryDirectory() as scratch:
            CrossEncoderTrainer(
                model=model,
                args=CrossEncoderTrainingArguments(
                    output_dir=scratch,
                    num_train_epochs=1,
                    per_device_train_batch_size=self.step,
                    learning_rate=1e-5,
                    warmup_steps=0.1,
                    bf16=self.cuda and self.precision == "bf16",
                    use_cpu=not self.cuda,
                    save_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                    dataloader_num_workers=2 if self.cuda else 0,
                ),
                train_dataset=datasets.Dataset.from_dict(columns),
                loss=losses.BinaryCrossEntropyLoss(model),
                callbacks=[clock],
            ).train()
        return clock.rate(self.step), clock.first

    def by_loop(self) -> tuple[float, float]:
        load = transformers.AutoModelForSequenceClassification.from_pretrained
        model = load(str(self.base), num_labels=1, attn_implementation="sdpa").to(self.device).train()
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(self.base))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=self.cuda)
        compute = torch.compile(model, dynamic=True) if self.cuda else model
        order = list(range(len(self.pairs)))
        random.Random(1).shuffle(order)
        block = 32 * self.step
        batches = []
        for first in range(0, len(order), block):
            rows = sorted(order[first : first + block], key=lambda row: self.lengths[row])
            batches += [rows[place : place + self.step] for place in range(0, len(rows), self.step)]
        random.Random(2).shuffle(batches)
        queries, documents, targets = zip(*self.pairs)
        encoded = tokenizer(list(queries), list(documents), truncation=True, max_length=LONGEST)
        names = list(encoded)
        clock = Clock(self.cuda)
        clock.begin()
        for rows in batches:
            batch = tokenizer.pad(
                [{name: encoded[name][row] for name in names} for row in rows],
                pad_to_multiple_of=8,
                return_tensors="pt",
            ).to(self.device, non_blocking=True)
            target = torch.tensor([targets[row] for row in rows], device=self.device)
            with torch.autocast(self.device, torch.bfloat16, enabled=self.cuda):
                scores = compute(**batch).logits[:, 0]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(scores.float(), target)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            clock.tick()
        return clock.rate(self.step), clock.first


class Clock(transformers.TrainerCallback):
    """From the end of the warm-up to the last step."""

    def __init__(self, cuda: bool):
        self.cuda, self.steps, self.first = cuda, 0, 0.0
        self.started = self.warm = self.last = 0.0

    def now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def begin(self) -> None:
        self.started = self.now()

    def tick(self) -> None:
        self.steps += 1
        if self.steps == 1:
            self.first = self.now() - self.started
        if self.steps == WARM_UP:
            self.warm = self.now()

    def rate(self, step: int) -> float:
        return (self.steps - WARM_UP) * step / (self.now() - self.warm)

    def on_train_begin(self, *_, **__) -> None:
        self.begin()

    def on_step_end(self, *_, **__) -> None:
        self.tick()


def operations(name: str, lengths: list[int]) -> float:
    """Of forward and backward, for a pair in the mean: two for a weight and token, and attention's."""
    sizes = MODELS[name]
    hidden, layers = sizes["hidden_size"], sizes["num_hidden_layers"]
    weights = layers * (4 * hidden * hidden + 2 * hidden * sizes["intermediate_size"])
    of_pair = [3 * (2 * weights * n + layers * 4 * n * n * hidden) for n in lengths]
    return statistics.fmean(of_pair)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("retort")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["minilm", "bert-base"])
    parser.add_argument("--pairs", type=int, default=19200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--step", type=int, default=64)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--fused", action="store_true")
    parser.add_argument("--keep", type=lambda path: Path(path).resolve())
    arguments = parser.parse_args()
    card = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    peak = next((rate for name, rate in PEAK.items() if name in card), None)
    pairs = make_pairs(arguments.pairs)
    print(
        f"{card}; torch {torch.__version__}, transformers {transformers.__version__}, "
        f"sentence-transformers {sentence_transformers.__version__}; {len(pairs)} pairs, "
        f"{arguments.step} a step"
    )
    print("| model | trainer | pairs/s | tokens/s | of peak | MiB | first step | Retort's ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["RETORT_CACHE"] = f"{folder}/cache"
            job = Job(arguments, name, pairs, (arguments.keep or Path(folder)) / name)
            trainers = {"Retort": job.by_retort, "CrossEncoderTrainer": job.by_trainer, "loop": job.by_loop}
            if arguments.fused:
                trainers["Retort, fused attention"] = lambda: job.by_retort("fused")
            made = {trainer: [] for trainer in trainers}
            for _ in range(arguments.rounds):
                for trainer, train in trainers.items():
                    memory = Memory(job.cuda)
                    try:
                        rate, first = train()
                    finally:
                        most = memory.stop()
                    made[trainer].append((rate, first, most))
                    print(f"{name} {trainer}: {rate:.1f} pairs/s", file=sys.stderr, flush=True)
                    if job.cuda:
                        torch.cuda.empty_cache()
            tokens = statistics.fmean(job.lengths)
            for trainer, rounds in made.items():
                rate, _, most = (statistics.median(column) for column in zip(*rounds))
                cold, *warm = (first for _, first, _ in rounds)
                first = f"{cold:.1f} s" + (f", then {statistics.median(warm):.1f} s" if warm else "")
                ratios = [ours[0] / theirs[0] for ours, theirs in zip(made["Retort"], rounds)]
                share = f"{rate * operations(name, job.lengths) / (peak * 1e12):.1%}" if peak else "–"
                print(
                    f"| {name} | {trainer} | {rate:.1f} | {rate * tokens:.0f} | {share} | {most:.0f} | "
                    f"{first} | {statistics.median(ratios):.2f} "
                    f"({min(ratios):.2f}–{max(ratios):.2f}) |"
                )


if __name__ == "__main__":
    main()
