"""What the fuzzers share: values that are strange, how many of them, and what may become of them."""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from akidb_mlx_plugin.errors import EmbeddingError

# What all inputs of one fuzzer together may add to the process.
_MOST_BYTES = 300 << 20
# Characters that mean something to parsers, terminals and tokenizers, unpaired surrogates among them.
ODD_CHARACTERS = (
    "\x00\x01\x07\x1b\x7f\x85\u00ad\u200b\u202e\u2028\ufeff\ufffe\ud800\udfff\U0001f469\u0301 \t\n\r\"'{}[],:&*!|>%@`-"
)
ODD_NUMBERS = (0, -1, 1, 3, 384, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"))

TEXTS = st.one_of(
    st.text(st.characters(), max_size=20),
    st.text(st.sampled_from(ODD_CHARACTERS), max_size=20),
    st.sampled_from(
        ["", "null", "mean", "cls+mean", "mlx", "mock", "../..", "org/model", "minilm-l6-v2", "~", "x" * 5000]
    ),
)
SCALARS = st.one_of(st.none(), st.booleans(), st.sampled_from(ODD_NUMBERS), st.integers(), TEXTS)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=8
)


def nested(depth: int, leaf: Any = 1) -> Any:
    """Return a value within so many lists."""
    for _ in range(depth):
        leaf = [leaf]
    return leaf


def deep_values() -> st.SearchStrategy[Any]:
    """Return values that are nested deeply, up to what Python's own parsers take."""
    return st.builds(nested, st.sampled_from([5, 90, 400, 900]), SCALARS)


def fuzz(
    request: pytest.FixtureRequest, strategy: st.SearchStrategy[Any], call: Callable[[Any], Any], usual: int
) -> None:
    """Call with many values; each has to end in a result or an EmbeddingError, all within bounded memory.

    Args:
        request: of the test, for `--mutations` and `--seed`.
        strategy: of the values.
        call: what is tried.
        usual: how many values, where `--mutations` does not say.
    """
    outcomes = {"results": 0, "errors": 0}

    @seed(request.config.getoption("--seed"))
    @settings(
        max_examples=request.config.getoption("--mutations") or usual,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(strategy)
    def run(value: Any) -> None:
        try:
            call(value)
            outcomes["results"] += 1
        except EmbeddingError:
            outcomes["errors"] += 1

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < _MOST_BYTES, f"{grown >> 20} MB more"
    # Where everything was refused, or nothing was, too little would be tested.
    assert all(outcomes.values()), outcomes
