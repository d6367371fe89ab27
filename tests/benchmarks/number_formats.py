"""How far vectors in a GPU's number formats are from those in float32: a table of cosines.

    python tests/benchmarks/number_formats.py                       # the tiny checkpoints and the real MiniLM
    python tests/benchmarks/number_formats.py --model FOLDER        # any other model too

Computed in a GPU's layout on the CPU device, which rounds after each operation where a GPU's fused kernels keep
float32 inside: a GPU is not farther away. "between" compares the two formats with each other, as on two machines that
each chose another one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from akidb_mlx_plugin import Embedder, InvalidInputError
from akidb_mlx_plugin.nn.layout import emulate_gpu
from akidb_mlx_plugin.types import Vector

GOLDEN = Path(__file__).parents[1] / "golden"
# One checkpoint for each architecture.
GOLDENS = (
    "albert", "bert", "distilbert", "electra", "eurobert", "gemma3_text", "gte", "jina_bert", "jina_embeddings_v3",
    "lfm2", "llama", "ministral3", "modernbert", "mpnet", "nomic_bert", "phi3", "qwen2", "qwen3", "roberta", "t5",
)  # fmt: skip
TEXTS = (
    "how do I parse a date?",
    "The stone bridge over the river was built in 1478 and rebuilt twice after floods.",
    "def f(x): return x  # the identity",
    "東京は日本の首都です。",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "A vector database stores embeddings and finds the nearest ones. " * 6,
)


def embed(model: str, dtype: str) -> Vector | None:
    """Return unit vectors in a number format; None if the model cannot be computed in it."""
    try:
        with emulate_gpu(), Embedder.load(model, device="cpu", dtype=dtype) as embedder:
            return embedder.embed(TEXTS, normalize=True).embeddings
    except InvalidInputError:
        return None


def cosine(a: Vector | None, b: Vector | None) -> str:
    """Return the lowest cosine of the rows of two matrices."""
    if a is None or b is None:
        return "not used"
    return f"{(a.astype(np.float64) * b).sum(axis=1).min():.6f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], help="a short name, repository or folder")
    parser.add_argument("--only", action="store_true", help="only the models of --model")
    options = parser.parse_args()
    models = [] if options.only else [*(str(GOLDEN / name / "model") for name in GOLDENS), "minilm-l6-v2"]
    sys.stdout.write("| checkpoint | float16 | bfloat16 | between |\n|---|---|---|---|\n")
    for model in [*models, *options.model]:
        exact, half, brain = (embed(model, dtype) for dtype in ("float32", "float16", "bfloat16"))
        name = Path(model).parent.name if model.startswith(str(GOLDEN)) else model
        cells = cosine(exact, half), cosine(exact, brain), cosine(half, brain)
        sys.stdout.write(f"| {name} | {' | '.join(cells)} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
