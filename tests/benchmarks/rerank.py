"""This package's reranker beside sentence-transformers' CrossEncoder, on the CPU, in turns: 100 pairs of a search.

    python tests/benchmarks/rerank.py --python peers=PATH_OF_AN_INTERPRETER_WITH_SENTENCE_TRANSFORMERS

The checkpoint has the shape of cross-encoder/ms-marco-MiniLM-L6-v2, six layers of 384: the encoder of all-MiniLM-L6-v2
and a random head, so that the scores mean nothing but can be compared. The pairs are a question and docstrings of the
standard library. It takes about a minute on two cores; the exit status is 1 below the bar.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
from checkpoints import find_minilm
from contenders import Contender, Interpreters, PeerMissingError, Worker
from pairs import Ratio, alternate, total_seconds

from akidb_mlx_plugin.benchmarks.corpus import popular_docstrings

# Times as fast as sentence-transformers.
_BAR = 1.5
_PAIRS, _WORDS = 100, 60
_QUESTION = "how do I parse a date from a string"
_BATCH_SIZES = (16, 32, 100)


def main() -> None:
    options = parse_options()
    interpreters = Interpreters.parse(options.python)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_checkpoint(Path(scratch) / "model")
        pairs = write_pairs(Path(scratch) / "pairs.json")
        contenders = [
            Contender("akidb-mlx", "ours_reranker", folder),
            Contender("sentence-transformers", "sentence_transformers_reranker", folder, _BATCH_SIZES),
        ]
        try:
            ratio, seconds, difference = measure(contenders, interpreters, cores, pairs, options.rounds)
        except PeerMissingError as error:
            raise SystemExit(f"{error}; name an interpreter that has it: --python peers=PATH") from error
    for name, taken in seconds.items():
        print(f"{name}: {_PAIRS} pairs in {taken * 1e3:.0f} ms, {_PAIRS / taken:.0f} pairs/s")
    print(f"{ratio.median:.2f} times as fast ({ratio.low:.2f} to {ratio.high:.2f}); scores differ by {difference:.1e}")
    sys.exit(0 if ratio.median >= _BAR else 1)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="interpreter of the peer")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each; the median ratio counts")
    return parser.parse_args()


def write_checkpoint(folder: Path) -> Path:
    """Write a reranker of MiniLM's encoder and a random head."""
    source = find_minilm()
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (source / name).is_file():
            shutil.copy(source / name, folder)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config |= {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    stored = mx.load(str(source / "model.safetensors"))
    assert isinstance(stored, dict)
    weights = {
        f"bert.{name}": value for name, value in stored.items() if not name.startswith("embeddings.position_ids")
    }
    numbers = np.random.default_rng(0).normal(size=config["hidden_size"]).astype(np.float32)
    weights |= {"classifier.weight": mx.array(numbers[None] * 0.1), "classifier.bias": mx.zeros(1)}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "pt"})
    return folder


def write_pairs(file: Path) -> Path:
    """Write a question with each of 100 texts of up to 60 words."""
    texts = [" ".join(doc.text.split()[:_WORDS]) for doc in popular_docstrings(_PAIRS)]
    file.write_text(json.dumps([[_QUESTION, text] for text in texts]), encoding="utf-8")
    return file


def measure(
    contenders: list[Contender], interpreters: Interpreters, cores: int, pairs: Path, rounds: int
) -> tuple[Ratio, dict[str, float], float]:
    """Return how much faster the first one is, the median seconds of each, and how far their scores are apart."""
    workers: dict[str, Worker] = {}
    try:
        for contender in contenders:
            workers[contender.name] = Worker(contender, interpreters.of(contender.module), cores)
            workers[contender.name].choose_batch_size(pairs)
        saved = {name: pairs.with_name(f"{i}.npy") for i, name in enumerate(workers)}
        for name, worker in workers.items():
            worker.embed(pairs, save=saved[name])
        turns = list(alternate(workers, pairs, rounds=rounds))
        scores = [np.load(file) for file in saved.values()]
    finally:
        for worker in workers.values():
            worker.close()
    ours, theirs = (total_seconds(turns, contender.name) for contender in contenders)
    seconds = {contender.name: float(np.median(total_seconds(turns, contender.name))) for contender in contenders}
    return Ratio.of(theirs, ours), seconds, float(np.abs(scores[0] - scores[1]).max())


if __name__ == "__main__":
    main()
