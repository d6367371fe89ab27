"""What a GPU is given for one forward pass, counted without one, of models of the real depth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from kernel_counts import count_kernels, count_nodes, fast_functions_counted_once, peak_bytes

from akidb_mlx_plugin.inference.packing import pack_padded
from akidb_mlx_plugin.models import find_encoder
from akidb_mlx_plugin.models.base import Encoder
from akidb_mlx_plugin.nn.batch import Pick, Tokens
from akidb_mlx_plugin.nn.layout import emulate_gpu
from akidb_mlx_plugin.nn.pooling import pool

# As deep as the real ones, and narrow: kernels are counted by layers. Sizes of heads and groups allow 4-bit weights.
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3": {
        "num_hidden_layers": 28,
        "hidden_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "intermediate_size": 256,
        "rope_theta": 1_000_000,
        "tie_word_embeddings": True,
    },
    "gemma3_text": {
        "num_hidden_layers": 24,
        "hidden_size": 128,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "intermediate_size": 256,
        "sliding_window": 512,
        "use_bidirectional_attention": True,
        "query_pre_attn_scalar": 64,
    },
    "bert": {"num_hidden_layers": 6, "hidden_size": 96, "num_attention_heads": 3, "intermediate_size": 192},
}
ONE_QUERY = [12]
TEN_QUERIES = [17, 14, 13, 12, 12, 11, 10, 9, 9, 7]


@pytest.fixture(autouse=True)
def _gpu_layout() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    with emulate_gpu():
        yield
    mx.set_default_device(before)


def build(name: str) -> Encoder:
    """Return an encoder with random weights in bfloat16, those of the decoders in 4 bits."""
    encoder = find_encoder(name).from_config({"model_type": name, "vocab_size": 64, **CONFIGS[name]})
    if name != "bert":
        nn.quantize(encoder, group_size=64, bits=4)
    encoder.prepare()
    encoder.apply(lambda x: x.astype(mx.bfloat16) if mx.issubdtype(x.dtype, mx.floating) else x)
    mx.eval(encoder.parameters())
    encoder.eval()
    return encoder


def describe(name: str, lengths: list[int]) -> mx.array:
    """Return the lazy vectors of the pass that texts of these lengths make together."""
    encoder = build(name)
    (batch,) = pack_padded([[5] * length for length in lengths], 1 << 20)
    tokens = Tokens.from_batch(batch)
    if name == "qwen3":
        return encoder.picked_vectors(tokens, Pick.last(batch.blocks)).astype(mx.float32)
    return pool(encoder(tokens), batch.blocks, ("mean",))


def kernels(name: str, lengths: list[int]) -> int:
    """Return the kernels of the pass that texts of these lengths make together."""
    with fast_functions_counted_once() as excess:
        out = describe(name, lengths)
    return count_kernels(out) - excess.kernels


@pytest.mark.slow
@pytest.mark.parametrize(("name", "most"), [("qwen3", 520), ("gemma3_text", 620), ("bert", 102)])
def test_one_query(name: str, most: int) -> None:
    # Every layer has at least seven products.
    assert 6 * CONFIGS[name]["num_hidden_layers"] < kernels(name, ONE_QUERY) <= most


@pytest.mark.slow
@pytest.mark.parametrize(("name", "most"), [("qwen3", 640), ("gemma3_text", 690), ("bert", 140)])
def test_ten_queries_in_three_blocks(name: str, most: int) -> None:
    """Attention takes a kernel or two more for each block; masks are made once for all layers."""
    assert kernels(name, TEN_QUERIES) <= most


def nodes(name: str, lengths: list[int]) -> int:
    """Return the nodes of a pass's graph."""
    with fast_functions_counted_once() as excess:
        out = describe(name, lengths)
    return count_nodes(out) - excess.nodes


@pytest.mark.slow
@pytest.mark.parametrize(("name", "one", "ten"), [("qwen3", 980, 1840), ("gemma3_text", 900, 1770), ("bert", 235, 500)])
def test_nodes_that_python_describes(name: str, one: int, ten: int) -> None:
    assert kernels(name, ONE_QUERY) < nodes(name, ONE_QUERY) <= one
    assert nodes(name, TEN_QUERIES) <= ten


@pytest.mark.slow
@pytest.mark.parametrize(("name", "most"), [("qwen3", 19), ("gemma3_text", 14), ("bert", 13)])
def test_activations_in_memory_at_once(name: str, most: int) -> None:
    """They do not pile up from layer to layer; counted in float32 numbers of the widest layer for each token."""
    config = {"model_type": name, "vocab_size": 64, **CONFIGS[name], "num_hidden_layers": 12}
    encoder = find_encoder(name).from_config(config)
    encoder.prepare()
    mx.eval(encoder.parameters())
    (batch,) = pack_padded([[5] * length for length in [96] * 8 + [64] * 8], 1 << 20)
    out = pool(encoder(Tokens.from_batch(batch)), batch.blocks, ("mean",))
    unit = len(batch.ids) * config["intermediate_size"] * 4
    # An output of the feed-forward network is one of them.
    assert 1 < peak_bytes(lambda: mx.eval(out)) / unit <= most
