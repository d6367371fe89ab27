"""A tiny BERT for dot products, and texts that these rank in an order of their own."""

import json
from pathlib import Path
from typing import Any

import chromadb
import numpy as np

TEXTS = {"a": "a", "b": "city of water", "c": "the city", "d": "the paper and the river of the city"}


QUESTION = "a stone"


def make_raw(folder: Path, similarity: str) -> None:
    """Take the Normalize module out of a checkpoint, and say what it was trained to be compared by."""
    modules = folder / "modules.json"
    modules.write_text(
        json.dumps([entry for entry in json.loads(modules.read_text()) if "Normalize" not in str(entry)])
    )
    file = folder / "config_sentence_transformers.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "similarity_fn_name": similarity}))


def lengths(vectors: Any) -> Any:
    return np.linalg.norm(vectors, axis=1)


def space_of(collection: chromadb.Collection) -> str:
    return str(collection.configuration_json["hnsw"]["space"])
