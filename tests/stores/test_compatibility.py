"""Whether a function's vectors fit those that a collection holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from akidb_mlx_plugin import (
    DimensionMismatchError,
    DownloadError,
    EmbeddingService,
    InvalidInputError,
    ModelInfo,
)
from akidb_mlx_plugin.stores.compatibility import (
    StoredVectors,
    as_vector,
    check_compatible,
    check_query_vector,
    make_stamp,
    without_stamp,
)
from akidb_mlx_plugin.stores.settings import stored_settings


class TestSpaces:
    INFO = ModelInfo(model="mock", dimension=8, max_tokens=1, fingerprint="mock:1:8")

    @pytest.fixture
    def mock(self) -> EmbeddingService:
        return EmbeddingService(mode="mock", dimension=8)

    def test_a_stamp_is_what_is_known(self) -> None:
        assert make_stamp(self.INFO) == {
            "akidb_mlx:model": "mock",
            "akidb_mlx:dimension": 8,
            "akidb_mlx:fingerprint": "mock:1:8",
        }
        unknown = ModelInfo(model="theirs", dimension=0, max_tokens=0)
        assert make_stamp(unknown) == {"akidb_mlx:model": "theirs"}
        assert without_stamp({**make_stamp(self.INFO), "owner": "me"}) == {"owner": "me"}

    @pytest.mark.parametrize("encode", [lambda value: value, str, lambda value: str(value).encode()])
    def test_a_function_that_fits(self, mock: EmbeddingService, encode: Callable[[Any], Any]) -> None:
        stamp = {key: encode(value) for key, value in make_stamp(self.INFO).items()}
        assert check_compatible(StoredVectors("c", stamp, dimension=8), mock) == 8
        assert check_compatible(StoredVectors("c", stamp), mock) == 8
        assert check_compatible(StoredVectors("c", stamp), None) == 8
        assert check_compatible(StoredVectors("c"), mock) == 8
        assert check_compatible(StoredVectors("c"), None) == 0

    @pytest.mark.parametrize(
        "stored",
        [
            StoredVectors("collection 'c'", dimension=16),
            StoredVectors("collection 'c'", {"akidb_mlx:model": "minilm-l6-v2", "akidb_mlx:dimension": 16}),
            StoredVectors("collection 'c'", {}, {"mode": "mock", "dimension": 16}, dimension=16),
        ],
    )
    def test_another_dimension(self, mock: EmbeddingService, stored: StoredVectors) -> None:
        with pytest.raises(
            DimensionMismatchError, match=r"holds vectors of 16 dimensions.* mock makes 8.*reembed"
        ) as e:
            check_compatible(stored, mock)
        assert (e.value.expected, e.value.actual) == (16, 8)

    def test_both_models_are_named(self, mock: EmbeddingService) -> None:
        stamp = {"akidb_mlx:model": "minilm-l6-v2", "akidb_mlx:dimension": 8, "akidb_mlx:fingerprint": "abc"}
        with pytest.raises(DimensionMismatchError, match=r"minilm-l6-v2 \(8 dimensions\).*mock \(8 dimensions\)"):
            check_compatible(StoredVectors("c", stamp, dimension=8), mock)

    def test_settings_tell_where_there_is_no_stamp(self, mock: EmbeddingService) -> None:
        same = stored_settings(mock.config)
        assert check_compatible(StoredVectors("c", settings=same), mock) == 8
        # Another name for the same space, told by what it makes.
        assert check_compatible(StoredVectors("c", settings={**same, "normalize": False}), mock) == 8
        other = {"model": "minilm-l6-v2", "mode": "mlx", "dimension": 384}
        with pytest.raises(DimensionMismatchError, match="minilm-l6-v2"):
            check_compatible(StoredVectors("c", settings=other), mock)

    @pytest.mark.parametrize("is_stamped", [True, False])
    @pytest.mark.parametrize(
        ("made_with", "opened_with", "is_same"),
        [
            ({}, {"mode": "mock"}, False),
            ({"dimension": 8}, {"mode": "mock"}, False),
            ({"model": "theirs"}, {"mode": "mock"}, False),
            ({"model": "theirs", "dimension": 8}, {"mode": "mock"}, False),
            ({"mode": "mock"}, {}, False),
            ({"mode": "mock"}, {"dimension": 8}, False),
            ({"mode": "mock"}, {"model": "theirs"}, False),
            ({"mode": "mock"}, {"model": "theirs", "dimension": 8}, False),
            ({"mode": "mock"}, {"model": "mock"}, True),
            ({"mode": "mock"}, {"mode": "mock"}, True),
            ({}, {"dimension": 8}, True),
            ({"dimension": 8}, {}, True),
            ({}, {"model": "theirs", "dimension": 8}, True),
            ({"model": "theirs", "dimension": 8}, {}, True),
            ({"model": "theirs", "dimension": 8}, {"model": "theirs"}, True),
            ({"model": "theirs"}, {"model": "theirs", "dimension": 8}, True),
            ({"model": "theirs"}, {"model": "others"}, False),
            ({"model": "theirs", "dimension": 8}, {"model": "others"}, False),
        ],
    )
    def test_vectors_that_are_brought_are_no_models(
        self, made_with: dict[str, Any], opened_with: dict[str, Any], is_same: bool, is_stamped: bool
    ) -> None:
        def make(
            model: str | None = None, mode: Any = "user_provided", dimension: int | None = None
        ) -> EmbeddingService:
            return EmbeddingService(model, mode=mode, dimension=8 if mode == "mock" else dimension)

        maker = make(**made_with)
        stamp = make_stamp(maker.model_info()) if is_stamped else {}
        stored = StoredVectors("collection 'c'", stamp, stored_settings(maker.config), dimension=8)
        if is_same:
            assert check_compatible(stored, make(**opened_with)) == 8
            return
        with pytest.raises(DimensionMismatchError, match="cannot be compared") as raised:
            check_compatible(stored, make(**opened_with))
        assert maker.model_info().model in str(raised.value)

    def test_a_model_that_is_not_here_is_another_model(self, mock: EmbeddingService) -> None:
        settings = {"model": "somebody/unknown-model", "mode": "mlx"}
        with pytest.raises(DimensionMismatchError, match=r"somebody/unknown-model.*mock"):
            check_compatible(StoredVectors("c", settings=settings), mock)

    def test_a_model_that_cannot_be_had_now(self, mock: EmbeddingService, monkeypatch: pytest.MonkeyPatch) -> None:
        def offline() -> ModelInfo:
            raise DownloadError("no network")

        monkeypatch.setattr(mock, "model_info", offline)
        own = StoredVectors("c", settings=stored_settings(mock.config), dimension=8)
        assert check_compatible(own, mock) == 8
        for stored in (replace(own, dimension=0), replace(own, settings={"mode": "mock", "dimension": 9})):
            with pytest.raises(DownloadError):
                check_compatible(stored, mock)

    def test_a_dimension_that_was_fixed_past_us(self, mock: EmbeddingService) -> None:
        with pytest.raises(DimensionMismatchError, match=r"made for vectors of 8 .*had 3.*make a new one"):
            check_compatible(StoredVectors("c", make_stamp(self.INFO), dimension=3), mock)

    @pytest.mark.parametrize("dimension", ["many", -3, b"x", [8]])
    def test_a_stamp_that_is_no_stamp(self, mock: EmbeddingService, dimension: Any) -> None:
        with pytest.raises(InvalidInputError, match="akidb_mlx:dimension"):
            check_compatible(StoredVectors("c", {"akidb_mlx:dimension": dimension}), mock)

    def test_a_query_vector(self) -> None:
        check_query_vector("c", 3, [1, 2, 3])
        check_query_vector("c", 0, np.ones(5))
        with pytest.raises(DimensionMismatchError, match="c holds vectors of 3 dimensions, and the query vector has 2"):
            check_query_vector("c", 3, [1, 2])
        with pytest.raises(InvalidInputError, match="query vector"):
            check_query_vector("c", 3, "abc")

    @pytest.mark.slow
    @given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
    def test_numbers_stay_what_they_are(self, numbers: list[float]) -> None:
        assert as_vector(numbers, "v").tolist() == numbers
        assert as_vector(np.asarray(numbers, dtype=np.float64), "v").dtype == np.float32
