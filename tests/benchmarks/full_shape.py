"""Randomly weighted checkpoints of the full Qwen3-Embedding-0.6B and EmbeddingGemma-300M shapes, 4-bit.

The real weights are gigabytes from a hub that not every machine reaches; these have every shape, format and setting of
them, laid out as mlx-community stores them, and say what loading takes and that what comes out is sound:

    python tests/benchmarks/full_shape.py [qwen3-0.6b-4bit | gemma-300m-4bit] [FOLDER]

`full_shape_torch.py` beside it compares the vectors with torch's.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from akidb_mlx_plugin import Embedder
from akidb_mlx_plugin.models import find_encoder

_GROUP_SIZE, _BITS = 64, 4
QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 151669,
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "max_position_embeddings": 32768,
    "rope_theta": 1_000_000,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
}
GEMMA = {
    "model_type": "gemma3_text",
    "vocab_size": 262144,
    "hidden_size": 768,
    "num_hidden_layers": 24,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "intermediate_size": 1152,
    "max_position_embeddings": 2048,
    "query_pre_attn_scalar": 256,
    "rope_theta": 1_000_000,
    "rope_local_base_freq": 10_000,
    "sliding_window": 512,
    "_sliding_window_pattern": 6,
    "use_bidirectional_attention": True,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
# Configuration, dense layers behind the pooling, format of scales and norms, first and last token of a text.
SHAPES: dict[str, tuple[dict[str, Any], tuple[tuple[int, int], ...], mx.Dtype, dict[str, int], dict[str, int]]] = {
    "qwen3-0.6b-4bit": (QWEN3, (), mx.bfloat16, {}, {"<|endoftext|>": 151643}),
    "gemma-300m-4bit": (GEMMA, ((768, 3072), (3072, 768)), mx.float16, {"<bos>": 2}, {"<eos>": 1}),
}


def make_full_shape(name: str, folder: Path, seed: int = 0) -> Path:
    """Write a checkpoint.

    Args:
        name: "qwen3-0.6b-4bit" or "gemma-300m-4bit".
        folder: where to; its parents must exist.
    Returns:
        The folder.
    """
    config, dense, dtype, first, last = SHAPES[name]
    folder.mkdir()
    rng = np.random.default_rng(seed)
    tensors: dict[str, mx.array] = {}
    for path, value in tree_flatten(find_encoder(config["model_type"], config).from_config(config).parameters()):
        if value.ndim == 2:
            tensors |= _random_matrix(f"model.{path.removesuffix('.weight')}", value.shape, dtype, rng)
        else:
            around = 0.0 if config["model_type"] == "gemma3_text" else 1.0
            norm = around + 0.1 * rng.standard_normal(value.shape, dtype=np.float32)
            tensors[f"model.{path}"] = mx.array(norm).astype(dtype)
    for i, (columns, rows) in enumerate(dense):
        tensors |= _random_matrix(f"dense.{i}", (rows, columns), dtype, rng)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "mlx"})
    quantization = {"group_size": _GROUP_SIZE, "bits": _BITS}
    settings = {**config, "quantization": quantization, "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    _tokenizer(first, last).save(str(folder / "tokenizer.json"))
    return folder


def _random_matrix(path: str, shape: tuple[int, ...], dtype: mx.Dtype, rng: np.random.Generator) -> dict[str, mx.array]:
    """Return a quantized matrix whose entries are of the size that keeps activations about as they are."""
    rows, columns = shape
    packed = np.frombuffer(rng.bytes(rows * columns * _BITS // 8), dtype=np.uint32).reshape(rows, -1)
    groups = (rows, columns // _GROUP_SIZE)
    # Sixteen steps, evenly filled, have a standard deviation of 4.61 of them.
    step = columns**-0.5 / 4.61
    scales = step * (0.5 + rng.random(groups, dtype=np.float32))
    return {
        f"{path}.weight": mx.array(packed),
        f"{path}.scales": mx.array(scales).astype(dtype),
        f"{path}.biases": mx.array(-7.5 * scales).astype(dtype),
    }


def _tokenizer(first: dict[str, int], last: dict[str, int]) -> Tokenizer:
    """Return a byte-level tokenizer without merges: few entries, ids that the full table has."""
    special = {**first, **last}
    vocabulary = {token: 100 + i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | special
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens(list(special))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = " ".join([*first, "$A", *last])
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=list(special.items()))
    return tokenizer


TEXTS = ("a", "the quick brown fox", "x" * 300, "how do I parse a date from a string?", "y" * 700)


def check(folder: Path, texts: Sequence[str] = TEXTS) -> dict[str, float]:
    """Load a checkpoint, embed texts alone and together, and return what that took and whether it is sound.

    The vectors are left in the folder, in `vectors.npy`, one row per line of `texts.txt`.
    """
    begun = time.perf_counter()
    with Embedder.load(folder, device="cpu") as embedder:
        alone = [embedder.embed([texts[0]]).embeddings[0]]
        first_vector_s = time.perf_counter() - begun
        alone += [embedder.embed([text]).embeddings[0] for text in texts[1:]]
        together = embedder.embed(texts[::-1]).embeddings[::-1]
        np.save(folder / "vectors.npy", together)
        (folder / "texts.txt").write_text("\n".join(texts))
        return {
            "load_s": embedder.load_seconds,
            "first_vector_s": first_vector_s,
            "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            / (1e6 if sys.platform == "linux" else 1e9),
            "farthest_from_unit": float(np.abs(np.linalg.norm(together, axis=1) - 1).max()),
            "least_cosine_alone_together": float((together * np.stack(alone)).sum(axis=1).min()),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=sorted(SHAPES), default="qwen3-0.6b-4bit")
    parser.add_argument("folder", nargs="?", type=Path, help="keep the checkpoint there; take it if it is there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch) / options.name
        if not folder.exists():
            make_full_shape(options.name, folder)
        print(json.dumps({"model": options.name, **check(folder)}, indent=1))


if __name__ == "__main__":
    main()
