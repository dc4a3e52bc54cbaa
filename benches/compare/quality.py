"""Trains students of the same labels with Retort and with sentence-transformers' CrossEncoderTrainer,
and prints their mean nDCG@10 on dev with a paired test over its queries.

    benches/compare/quality.py RETORT_BINARY BASE_DIR [COLLECTION] [--queries 100] [--dev-queries 200]
                               [--seeds 1 2 3] [--losses bce ranknet lambda_loss margin_mse]
                               [--keep DIR]

BASE_DIR is a BERT in Hugging Face's layout. COLLECTION is a folder in BEIR layout with the splits train
and dev (SciFact, say): its labels are the gold gains of train, and of each query six documents that BM25
finds and two random ones as irrelevant; what is ranked are the ten that BM25 finds for a dev query.
Without it the demo's shop is used, with the LLM's labels. It needs sentence-transformers, datasets and
accelerate.

The two get the same pairs of the same queries, targets, base model, dropout (none), number of pairs in
a step, steps, learning rates, weight decay and norm of gradients. Every model, the last one of a run and
not the best on dev, ranks the same candidates, scored by sentence-transformers. What was trained is kept
in DIR (target/compare/quality), and a run that was stopped goes on.
"""

import argparse
import gzip
import json
import math
import os
import random
import shutil
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import datasets  # noqa: E402
import pyarrow.parquet  # noqa: E402
import sentence_transformers  # noqa: E402
import torch  # noqa: E402
from labels import run, seal  # noqa: E402
from sentence_transformers.cross_encoder import (  # noqa: E402
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
    losses,
)

ROOT = Path(__file__).resolve().parents[2]
GROUP = 10  # documents of a query in a step
GROUPS = 4  # queries of a step
LEARNING_RATE = 1e-4
WARM_UP = 0.1
WEIGHT_DECAY = 0.01
MAX_TOKENS = 128
LEAST_DOUBT = 0.01  # logits are of shares this far from 0 and 1, as Retort takes them
DEPTH = 10
# What Retort can sum and the other can't; the first is its default.
SUMS = {
    "margin_mse + 0.1 bce": "margin_mse = 1.0\nbce = 0.1",
    "lambda_loss + 0.1 bce": "lambda_loss = 1.0\nbce = 0.1",
}


class Data:
    """A collection, the labels to learn from, and the candidates of dev."""

    def __init__(self, retort: str, collection: Path | None, queries: int, dev_queries: int, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.collection = collection or ROOT / "training-data/shop"
        self.documents = {
            row["_id"]: f"{row['title']}. {row['text']}" if row.get("title") else row["text"]
            for row in self.rows("corpus.jsonl")
        }
        self.queries = {row["_id"]: row["text"] for row in self.rows("queries.jsonl")}
        shares = self.gold(retort) if collection else self.judged()
        kept = sorted(shares)
        random.Random(0).shuffle(kept)
        self.shares = {query: shares[query] for query in sorted(kept[:queries])}
        self.top = 1 if collection else 3
        gains = self.qrels("dev")
        of_dev = sorted(query for query in gains if any(gains[query].values()))
        random.Random(0).shuffle(of_dev)
        self.gains = {query: gains[query] for query in sorted(of_dev[:dev_queries])}
        self.candidates = self.dev_candidates(retort) if collection else by_query(self.rows("candidates/dev.jsonl"))
        if not (folder / "labels").exists():
            self.seal(retort)

    def rows(self, name: str) -> list[dict]:
        plain = self.collection / name
        opened = plain.open("rb") if plain.exists() else gzip.open(f"{plain}.gz")
        with opened as lines:
            return [json.loads(line) for line in lines if line.strip()]

    def qrels(self, split: str) -> dict[str, dict[str, int]]:
        gains: dict[str, dict[str, int]] = defaultdict(dict)
        lines = (self.collection / f"qrels/{split}.tsv").read_text().splitlines()
        for query, document, gain in (line.split("\t") for line in lines[1:]):
            gains[query][document] = int(gain)
        return gains

    def judged(self) -> dict[str, dict[str, float]]:
        """What the LLM said, as shares of its top grade."""
        shards = sorted((self.collection / "labels/train").glob("*.parquet"))
        table = pyarrow.concat_tables(map(pyarrow.parquet.read_table, shards))
        shares: dict[str, dict[str, float]] = defaultdict(dict)
        for row in table.select(["query_id", "document_id", "grade"]).to_pylist():
            shares[row["query_id"]][row["document_id"]] = row["grade"] / 3
        return shares

    def gold(self, retort: str) -> dict[str, dict[str, float]]:
        found = self.found(retort, "train", ["--bm25", "6", "--trigrams", "0", "--random", "2"], True)
        gains = self.qrels("train")
        return {
            query: {document: 1.0 for document, gain in gains[query].items() if gain > 0}
            | {document: 0.0 for document in documents}
            for query, documents in found.items()
        }

    def dev_candidates(self, retort: str) -> dict[str, list[str]]:
        return self.found(retort, "dev", ["--bm25", "10", "--trigrams", "0", "--random", "0"], False)

    def found(self, retort: str, split: str, flags: list[str], negatives: bool) -> dict[str, list[str]]:
        path = self.folder / f"{split}.jsonl"
        if not path.exists():
            arguments = ["--collection", str(self.collection), "--split", split, "--out", str(path)]
            if negatives:
                flags = [*flags, "--exclude-positives"]
            run(retort, "candidates", *arguments, *flags)
        return by_query([json.loads(line) for line in path.read_text().splitlines()])

    def seal(self, retort: str) -> None:
        """A label set of what is to be learned, for Retort."""
        judgements = [
            # Grades 0 and the top, of which the mean is the share.
            {
                "query_id": query,
                "document_id": document,
                "probabilities": [1 - share] + [0.0] * (self.top - 1) + [share],
            }
            for query, documents in self.shares.items()
            for document, share in documents.items()
        ]
        seal(retort, self.collection, judgements, self.folder / "labels")

    def ndcg(self, folder: Path) -> dict[str, float]:
        """Of each dev query, as a model ranks its candidates."""
        model = CrossEncoder(str(folder), device="cpu", max_length=MAX_TOKENS)
        ids = [(query, document) for query in self.gains for document in self.candidates.get(query, [])]
        texts = [(self.queries[query], self.documents[document]) for query, document in ids]
        scores = model.predict(texts, batch_size=64, activation_fn=torch.nn.Identity())
        ranked: dict[str, list[tuple[float, str]]] = defaultdict(list)
        for (query, document), score in zip(ids, scores):
            ranked[query].append((-float(score), document))
        return {
            query: dcg([gains.get(document, 0) for _, document in sorted(ranked[query])])
            / dcg(sorted(gains.values(), reverse=True))
            for query, gains in self.gains.items()
        }


def by_query(rows: list[dict]) -> dict[str, list[str]]:
    documents: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        documents[row["query_id"]].append(row["document_id"])
    return documents


def dcg(gains: list[int]) -> float:
    return sum((2**gain - 1) / math.log2(rank + 2) for rank, gain in enumerate(gains[:DEPTH]))


def train_retort(retort: str, base: Path, data: Data, loss: str, seed: int, out: Path) -> Path:
    terms = SUMS.get(loss, f"{loss} = 1.0")
    candidates = out.with_suffix(".jsonl")
    rows = [
        json.dumps({"query_id": query, "document_id": document, "source": "random"})
        for query in list(data.gains)[:1]
        for document in data.candidates[query][:2]
    ]
    # What Retort measures by itself is not looked at here: one query is enough.
    candidates.write_text("\n".join(rows))
    # A loss that compares nothing takes its pairs from all queries, as theirs does.
    group, number = (1, GROUP * GROUPS) if loss in ("bce", "mse") else (GROUP, GROUPS)
    config = out.with_suffix(".toml")
    config.write_text(
        f'name = "quality"\nseed = {seed}\n'
        f'[data]\ncollection = "{data.collection}"\nlabels = "{data.folder / "labels"}"\n'
        f'max_tokens = {MAX_TOKENS}\n[model]\ninit = "{base}"\ndropout = 0.0\n[loss]\n{terms}\n'
        f"[optimizer]\nlearning_rate = {LEARNING_RATE}\nweight_decay = {WEIGHT_DECAY}\n"
        f"[schedule]\nepochs = 1\ndocuments_per_query = {group}\nqueries_per_step = {number}\n"
        f"warmup = {WARM_UP}\ntokens_per_pass = 1024\n"
        f'[evaluation]\nsplit = "dev"\ncandidates = "{candidates}"\nevery_steps = 1000000\n'
        f'[verdict]\nsplit = "dev"\ncandidates = "{candidates}"\n'
    )
    said = run(retort, "train", "--device", "cpu", "--config", str(config), "--out", str(out))
    warnings = [line for line in said.splitlines() if " WARN " in line]
    print(f"{loss}, seed {seed}: {len(warnings)} warnings", *warnings, sep="\n", file=sys.stderr, flush=True)
    last = max((out / "steps").iterdir(), key=lambda step: int(step.name))
    run(retort, "export", str(out), "--out", str(out / "last"))
    # The last step's weights, whichever of the run's were the best on those two documents.
    shutil.copy(last / "model.safetensors", out / "last/model.safetensors")
    return out / "last"


def groups(data: Data, seed: int) -> list[tuple[str, list[str]]]:
    """Each query's documents, shuffled and cut into groups of nearly one size."""
    draw = random.Random(seed)
    cut = []
    for query, shares in data.shares.items():
        documents = sorted(shares)
        draw.shuffle(documents)
        number = math.ceil(len(documents) / GROUP)
        cut += [(query, documents[place::number]) for place in range(number)]
    draw.shuffle(cut)
    return cut


def logit(share: float) -> float:
    share = min(max(share, LEAST_DOUBT), 1 - LEAST_DOUBT)
    return math.log(share / (1 - share))


def train_theirs(base: Path, data: Data, loss: str, seed: int, out: Path) -> Path:
    model = CrossEncoder(
        str(base),
        num_labels=1,
        device="cpu",
        max_length=MAX_TOKENS,
        config_kwargs={
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "classifier_dropout": 0.0,
        },
    )
    cut = groups(data, seed)
    text = data.documents.__getitem__
    share = {(q, d): s for q, documents in data.shares.items() for d, s in documents.items()}
    if loss == "bce":
        pairs = [(query, document) for query, documents in cut for document in documents]
        columns = {
            "query": [data.queries[query] for query, _ in pairs],
            "document": [text(document) for _, document in pairs],
            "label": [share[pair] for pair in pairs],
        }
    elif loss == "margin_mse":
        # One row has as many columns as it has documents, so all have the size of the smallest.
        size = min(len(documents) for _, documents in cut)
        columns = {"query": [data.queries[query] for query, _ in cut]}
        for place in range(size):
            columns[f"document_{place}"] = [text(documents[place]) for _, documents in cut]
        columns["label"] = [
            [logit(share[query, document]) for document in documents[:size]] for query, documents in cut
        ]
    else:
        target = (lambda s: s * data.top) if loss == "lambda_loss" else logit
        columns = {
            "query": [data.queries[query] for query, _ in cut],
            "documents": [[text(document) for document in documents] for _, documents in cut],
            "labels": [[target(share[q, document]) for document in documents] for q, documents in cut],
        }
    step = GROUPS
    if loss == "bce":
        step = round(GROUPS * len(share) / len(cut))
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(out),
        num_train_epochs=1,
        per_device_train_batch_size=step,
        learning_rate=LEARNING_RATE,
        warmup_steps=WARM_UP,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=1.0,
        seed=seed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    of_theirs = {
        "bce": losses.BinaryCrossEntropyLoss,
        "ranknet": losses.RankNetLoss,
        "lambda_loss": losses.LambdaLoss,
        "margin_mse": losses.MarginMSELoss,
        "listnet": losses.ListNetLoss,
        "mse": losses.MSELoss,
    }[loss]
    CrossEncoderTrainer(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_dict(columns),
        loss=of_theirs(model),
    ).train()
    model.save_pretrained(str(out))
    return out


def paired(ours: dict[str, float], theirs: dict[str, float]) -> str:
    """The mean difference over queries, its bootstrap interval, and a sign-flip test's p."""
    differences = [ours[query] - theirs[query] for query in ours]
    draw = random.Random(0)
    count = len(differences)
    means = sorted(statistics.fmean(draw.choices(differences, k=count)) for _ in range(5000))
    mean = statistics.fmean(differences)
    extreme = sum(
        abs(statistics.fmean(d if draw.random() < 0.5 else -d for d in differences)) >= abs(mean)
        for _ in range(5000)
    )
    return f"{mean:+.4f} ({means[125]:+.4f} to {means[4874]:+.4f}), p {(extreme + 1) / 5001:.3f}"


def over_seeds(runs: dict[int, dict[str, float]]) -> dict[str, float]:
    seeds = list(runs.values())
    return {query: statistics.fmean(one[query] for one in seeds) for query in seeds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("retort")
    parser.add_argument("base", type=Path)
    parser.add_argument("collection", type=Path, nargs="?")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--dev-queries", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--losses", nargs="+", default=["bce", "ranknet", "lambda_loss", "margin_mse"]
    )
    parser.add_argument("--keep", type=Path, default=ROOT / "target/compare/quality")
    arguments = parser.parse_args()
    collection = arguments.collection and arguments.collection.resolve()
    name = collection.name if collection else "shop"
    keep = arguments.keep.resolve() / f"{name}-{arguments.queries}-{arguments.dev_queries}"
    data = Data(arguments.retort, collection, arguments.queries, arguments.dev_queries, keep)
    base = arguments.base.resolve()

    def result(side: str, loss: str, seed: int) -> dict[str, float]:
        kept = keep / f"{side}-{loss.replace(' ', '-')}-{seed}.json"
        if not kept.exists():
            print(f"training: {kept.stem}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(dir=keep) as scratch:
                out = Path(scratch) / "run"
                if side == "retort":
                    folder = train_retort(arguments.retort, base, data, loss, seed, out)
                else:
                    folder = train_theirs(base, data, loss, seed, out)
                measured = data.ndcg(folder)
            kept.write_text(json.dumps(measured))
        return json.loads(kept.read_text())

    sides = [("retort", loss) for loss in [*arguments.losses, *SUMS]]
    sides += [("theirs", loss) for loss in arguments.losses]
    results: dict[tuple[str, str], dict[int, dict[str, float]]] = defaultdict(dict)
    for seed in arguments.seeds:
        for side in sides:
            results[side][seed] = result(*side, seed)
    mean = {side: over_seeds(runs) for side, runs in results.items()}

    print(
        f"{name}: {sum(map(len, data.shares.values()))} pairs of {len(data.shares)} queries, "
        f"{len(arguments.seeds)} seeds, nDCG@10 of {len(next(iter(mean.values())))} dev queries; "
        f"sentence-transformers {sentence_transformers.__version__}, torch {torch.__version__}"
    )

    def number(side: tuple[str, str]) -> float:
        return statistics.fmean(mean[side].values())

    print("| loss | Retort | CrossEncoderTrainer | difference (95 %) |\n|---|---|---|---|")
    for loss in arguments.losses:
        ours, theirs = ("retort", loss), ("theirs", loss)
        compared = paired(mean[ours], mean[theirs])
        print(f"| {loss} | {number(ours):.4f} | {number(theirs):.4f} | {compared} |")
    for loss in SUMS:
        print(f"| {loss} | {number(('retort', loss)):.4f} | | |")
    best, their_best = (
        max((side for side in mean if side[0] == name), key=number) for name in ("retort", "theirs")
    )
    print(f"\nbest against best: {best[1]} {number(best):.4f}, {their_best[1]} {number(their_best):.4f}; "
          f"{paired(mean[best], mean[their_best])}")


if __name__ == "__main__":
    main()
