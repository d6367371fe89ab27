"""Measure how close a converted model's vectors are to the original's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from akidb_mlx_plugin.inference.embedder import Embedder

# Sample texts: several scripts, prose and code, short and long.
SAMPLE_TEXTS = (
    "hello",
    "What is the capital of France?",
    "The quick brown fox jumps over the lazy dog.",
    "def parse_date(text: str) -> datetime.date: return datetime.date.fromisoformat(text)",
    "SELECT name, COUNT(*) FROM orders WHERE placed > '2024-01-01' GROUP BY name ORDER BY 2 DESC LIMIT 10;",
    "La photosynthèse transforme la lumière du soleil en énergie chimique.",
    "東京は日本の首都で、世界最大の都市圏の一つです。",
    "Как отсортировать список словарей по значению ключа?",
    "كيف أتعلم لغة برمجة جديدة بسرعة؟",
    "Der Vertrag kann von beiden Seiten mit einer Frist von drei Monaten zum Monatsende gekündigt werden.",
    "Bring the water to a boil, add the pasta and a spoonful of salt, and stir now and then. After nine minutes taste "
    "it; when it is done, drain it, keep a cup of the water, and toss it in the pan with the sauce until it is glossy.",
    "A binary search tree keeps its keys in order, so that looking one up, adding one or removing one takes time in "
    "proportion to its height. Where keys come in order the tree degenerates into a list; balanced trees such as red-"
    "black or AVL trees rotate nodes to keep the height logarithmic.",
)


def mean_cosine(source: Path, target: Path) -> float:
    """Return the mean cosine similarity of two checkpoints' vectors for the sample texts; 1 if equal."""
    vectors = []
    for folder in (source, target):
        with Embedder.load(folder) as embedder:
            vectors.append(embedder.embed(SAMPLE_TEXTS, normalize=True).embeddings)
    return float(np.mean(np.sum(vectors[0] * vectors[1], axis=1)))
