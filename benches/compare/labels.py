"""Label sets of judgements that no teacher made, for what is compared."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path


def run(*command: str) -> str:
    """What a command said on its way; ends the script with that, should it fail."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    return done.stderr


def seal(retort: str, collection: Path, judgements: list[dict], out: Path) -> None:
    """Seals judgements, each with `query_id`, `document_id` and `probabilities`, into a new folder."""
    with tempfile.TemporaryDirectory() as scratch:
        answers = [str(grade) for grade in range(len(judgements[0]["probabilities"]))]
        (Path(scratch) / "prompt.toml").write_text(
            f'answers = {json.dumps(answers)}\nsystem = "s"\nuser = "{{{{ query }}}} {{{{ document }}}}"\n'
        )
        (Path(scratch) / "label.toml").write_text(
            f'collection = "{collection}"\ncandidates = "{scratch}/pairs.jsonl"\n'
            f'ledger = "{scratch}/ledger.sqlite"\nprompt = "{scratch}/prompt.toml"\n'
            '[teacher]\nname = "made up"\nmodel = "none"\nendpoints = ["http://127.0.0.1:9/v1"]\n'
        )
        pairs = [
            {"query_id": one["query_id"], "document_id": one["document_id"], "source": "random"}
            for one in judgements
        ]
        for name, rows in (("pairs", pairs), ("judgements", judgements)):
            (Path(scratch) / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = ["--config", f"{scratch}/label.toml"]
        run(retort, "labels", "import", f"{scratch}/judgements.jsonl", *config)
        run(retort, "labels", "seal", f"{scratch}/ledger.sqlite", "--out", str(out))
