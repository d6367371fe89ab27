"""A last layer that computes only the tokens that are pooled: their vectors are those among all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import mlx.core as mx
import numpy as np
import pytest
from golden_models import read_golden, token_rows

from akidb_mlx_plugin.checkpoints.loading import load_model
from akidb_mlx_plugin.inference.packing import pack_exact, pack_padded
from akidb_mlx_plugin.models.base import Encoder, PickingEncoder
from akidb_mlx_plugin.nn.batch import Pick, Tokens
from akidb_mlx_plugin.nn.layout import emulate_gpu

# Each kind of last layer: with windows, convolutions, experts, scaled or long rotary positions.
PICKING = [
    "bert", "camembert", "distilbert", "electra_wide", "eurobert", "gemma3_text", "gemma3_text_causal", "gte",
    "jina_embeddings_v3", "lfm2", "lfm2_bidirectional", "llama", "ministral3", "modernbert", "modernbert_bias",
    "nomic_bert_long", "nomic_bert_moe", "qwen3_window", "xlm_roberta",
]  # fmt: skip
# Computed as a whole: biases of positions, layers that are applied repeatedly.
OTHERS = ["albert", "jina_bert", "mpnet", "t5"]


@pytest.fixture(autouse=True)
def _cpu() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["cpu", "gpu"])
@pytest.mark.parametrize("name", [*PICKING, *OTHERS])
def test_vectors_are_those_among_all(name: str, layout: str) -> None:
    golden = read_golden(name)
    rows, _ = token_rows(golden.checkpoint, golden.texts, "document")
    with emulate_gpu() if layout == "gpu" else nullcontext():
        encoder = load_model(golden.checkpoint, device="cpu", dtype="float32").encoder
        assert isinstance(encoder, Encoder)
        for batch in (pack_padded if layout == "gpu" else pack_exact)(rows, 1024):
            tokens = Tokens.from_batch(batch)
            every = np.array(encoder(tokens))
            for pick in (Pick.first(batch.blocks), Pick.last(batch.blocks)):
                picked = np.array(encoder.picked_vectors(tokens, pick))
                assert len(picked) == len(batch.order)
                assert np.abs(picked - every[np.array(pick.places)]).max() < 2e-6 * max(1, np.abs(every).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", PICKING)
def test_the_last_layer_computes_no_other_tokens(name: str) -> None:
    golden = read_golden(name)
    encoder = load_model(golden.checkpoint, device="cpu").encoder
    assert isinstance(encoder, PickingEncoder)
    rows, _ = token_rows(golden.checkpoint, golden.texts[:3], "document")
    (batch,) = pack_exact(rows, 1 << 20)
    tokens = Tokens.from_batch(batch)
    stack = getattr(encoder, "encoder", encoder)
    layer = type((stack.layer if "layer" in stack else stack.layers)[0])
    sizes: list[int] = []
    compute = layer.__call__

    def note(self: object, *arguments: object) -> mx.array:
        out = compute(self, *arguments)
        sizes.append(len(out))
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer, "__call__", note)
        encoder.picked_vectors(tokens, Pick.first(batch.blocks))
    assert sizes == [*[len(batch.ids)] * (len(sizes) - 1), 3]
    assert len(batch.ids) > 3
