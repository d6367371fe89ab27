"""Large requests to a server: slices on their way at the same time."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from local_server import PATIENCE_S, client, mock_config, serving, wait_until
from queue_fakes import GatedEngine

from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.providers.mock import hash_texts


def test_the_server_has_the_next_slice_before_it_has_answered(engine: GatedEngine) -> None:
    texts = [f"text {i}" for i in range(1200)]
    with serving(mock_config()) as server, client(server.url) as far:
        far.embed_batch(["a"])
        engine.hold()
        waiting = far.submit(texts)
        wait_until(lambda: server.requests.count("/v1/embeddings") == 3, "two slices are with the server")
        time.sleep(0.05)
        assert server.requests.count("/v1/embeddings") == 3
        engine.release()
        np.testing.assert_array_equal(waiting.result(PATIENCE_S).embeddings, hash_texts(texts, 8))


def test_one_that_is_refused_fails_alone(engine: GatedEngine) -> None:
    def refuse(requests: Any) -> None:
        if any("wrong" in text for request in requests for text in request.inputs):
            raise InvalidInputError("text 3 is wrong")

    engine.before_each = refuse
    good, bad = [f"text {i}" for i in range(40)], ["right"] * 39 + ["wrong"]
    with serving(mock_config()) as server, client(server.url) as far:
        far.embed_batch(["a"])
        engine.hold()
        busy = far.submit(["busy"] * 40)
        engine.wait_for_batch()
        engine.wait_for_batch()
        answers = [far.submit(good), far.submit(bad)]
        engine.release()
        busy.result(PATIENCE_S)
        np.testing.assert_array_equal(answers[0].result(PATIENCE_S).embeddings, hash_texts(good, 8))
        with pytest.raises(InvalidInputError, match="wrong"):
            answers[1].result(PATIENCE_S)


@pytest.mark.slow
def test_bulk_clients_do_not_cut_each_others_slices_short(engine: GatedEngine) -> None:
    def compute(requests: Any) -> None:
        time.sleep(characters_of(requests) / 80_000)

    def characters_of(requests: Any) -> int:
        return sum(len(text) for request in requests for text in request.inputs)

    # Their first slices have a few long texts, their last ones many short texts.
    texts = [f"text {i} ".ljust(100 * (i + 1), "x") for i in range(30)]
    with serving(mock_config()) as server, ExitStack() as stack:
        clients = [stack.enter_context(client(server.url)) for _ in range(4)]
        for far in clients:
            far.embed_batch(["a"])
        engine.batches.clear()
        engine.before_each = compute
        for answer in [far.submit(texts) for far in clients]:
            np.testing.assert_array_equal(answer.result(PATIENCE_S).embeddings, hash_texts(texts, 8))
        total = sum(map(characters_of, engine.batches))
        assert total == 4 * sum(map(len, texts))
        assert total / len(engine.batches) > 8_000
