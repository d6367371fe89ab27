"""Functions that do not fit a collection, and collections that store what nobody should trust, in either database."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from host_helpers import MINILM, TINY
from hosts import D, Host
from loopback_hub import Hub

from akidb_mlx_plugin import DimensionMismatchError, Document, EmbeddingService, InvalidInputError, ModelNotFoundError

pytest_plugins = ("host_fixtures", "hub_fixtures")


@pytest.mark.slow
def test_the_stored_function_embeds(host: Host, docs: Any, name: str) -> None:
    opened = host.get(name)
    assert host.upsert(opened, [Document("a", "a text")]).embeddings_generated == 1
    assert host.search(opened, "a text") == "a"


@pytest.mark.slow
def test_another_model_under_the_same_name(host: Host, docs: Any, name: str, mock: Any) -> None:
    assert host.create(name, mock, exist_ok=True).name == name
    other = host.make(mode="mock", dimension=16)
    with pytest.raises(DimensionMismatchError, match=r"8 dimensions \(mock\), and mock makes 16.*reembed") as error:
        host.create(name, other, exist_ok=True)
    assert (error.value.expected, error.value.actual) == (8, 16)


@pytest.mark.slow
def test_another_model_of_the_same_length(host: Host, name: str, minilm: EmbeddingService) -> None:
    made = host.create(name, host.make(MINILM))
    prompted = host.make(MINILM, document_prompt="passage: ")
    for refused in (
        lambda: host.create(name, prompted, exist_ok=True),
        lambda: host.get(name, prompted),
        lambda: host.validate(made, prompted),
        lambda: host.upsert(made, [Document("a", "a")], prompted),
    ):
        with pytest.raises(DimensionMismatchError, match="cannot be compared"):
            refused()


@pytest.mark.slow
def test_one_model_by_two_names(host: Host, name: str, minilm_dir: Path) -> None:
    made = host.create(name, host.make(minilm_dir))
    host.validate(made, host.make(MINILM))


@pytest.mark.slow
def test_a_collection_without_our_function(host: Host, name: str) -> None:
    plain = host.create_plain(name)
    with pytest.raises(InvalidInputError, match=r"no function of this package.*embedding_function="):
        host.get(name)
    with pytest.raises(InvalidInputError, match="'a' has a text and no vector"):
        host.upsert(plain, [Document("a", "a")])
    assert host.upsert(plain, [Document("a", "a", vector=[1.0, 2.0])]).inserted == 1
    with pytest.raises(DimensionMismatchError, match="holds 2"):
        host.upsert(plain, [Document("b", vector=[1.0, 2.0, 3.0])])
    with pytest.raises(DimensionMismatchError, match="holds vectors of 2 dimensions, and mock makes 8"):
        host.validate(plain, host.make(mode="mock", dimension=8))


@pytest.mark.slow
def test_a_query_vector(host: Host, docs: Any) -> None:
    host.validate(docs, query_vector=[1.0] * D)
    with pytest.raises(DimensionMismatchError, match="holds vectors of 8 dimensions, and the query vector has 3"):
        host.validate(docs, query_vector=[1.0] * 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"model": "evil/backdoored-model"}, InvalidInputError, "AKIDB_ALLOWED_MODELS"),
        ({"model": "/nowhere/at/all"}, ModelNotFoundError, "/nowhere/at/all"),
        ({"model": "../../etc"}, ModelNotFoundError, "etc"),
        ({"model": "~nobody-of-that-name/m"}, ModelNotFoundError, "~nobody-of-that-name"),
        ({"model": MINILM, "trust_remote_code": True}, InvalidInputError, "trust_remote_code"),
        ({"model": MINILM, "cache_dir": "/tmp/evil"}, InvalidInputError, "cache_dir"),
        ({"model": MINILM, "mode": "exec"}, InvalidInputError, "mode"),
        ({"model": MINILM, "normalize": "yes"}, InvalidInputError, "stored setting normalize = 'yes'"),
        ({"mode": "mock", "dimension": 10**15}, InvalidInputError, "no vectors have more than"),
    ],
)
def test_stored_settings_fetch_and_run_nothing(
    host: Host, name: str, hub: Hub, settings: dict[str, Any], kind: type[Exception], message: str
) -> None:
    collection = host.store_settings(name, settings)
    for refused in (
        lambda: host.get(name),
        lambda: host.validate(collection),
        lambda: host.upsert(collection, [Document("b", "b")]),
        lambda: asyncio.run(host.module.aupsert(collection, [Document("b", "b")])),
    ):
        with pytest.raises(kind, match=message):
            refused()
    # The host's own search; it may wrap the error.
    with pytest.raises(Exception, match=message):
        host.search(collection, "b")
    assert hub.requests == []
    assert host.read(host.open(name)) == {}


@pytest.mark.slow
def test_a_stamp_is_compared_and_not_obeyed(host: Host, name: str, hub: Hub) -> None:
    stamp = {"akidb_mlx:model": "evil/backdoored-model", "akidb_mlx:dimension": D, "akidb_mlx:fingerprint": "f"}
    host.store_settings(name, {"mode": "mock", "dimension": D}, stamp)
    with pytest.raises(DimensionMismatchError, match="evil/backdoored-model"):
        host.get(name)
    assert hub.requests == []


@pytest.mark.slow
def test_what_users_ask_for_themselves_may_be_any_model(host: Host, name: str) -> None:
    host.create(name, host.make(TINY))
    assert host.upsert(host.get(name, host.make(TINY)), [Document("a", "a")]).inserted == 1
