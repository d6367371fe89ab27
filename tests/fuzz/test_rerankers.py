"""Damaged rerankers end in scores or an `EmbeddingError`.

pytest tests/fuzz/test_rerankers.py --mutations 5000 --seed 1
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from golden_rerankers import NAMES, opened, reranker_dir, score
from mutations import mutate_file

from akidb_mlx_plugin.errors import EmbeddingError

_USUAL = 100
_PAIRS = [["where is the water", "under the stone bridge"], ["winter, <pad> [SEP] </s>", "a river"]]


@pytest.mark.slow
def test_damage_ends_in_scores_or_an_embedding_error(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    mutations = request.config.getoption("--mutations") or _USUAL
    seed = request.config.getoption("--seed")
    scored = sum(_try_mutant(f"{seed}-{i}", tmp_path / "m") for i in range(mutations))
    # Not everything may be refused, or nothing would be tested.
    assert mutations // 20 < scored < mutations


def _try_mutant(seed: str, folder: Path) -> bool:
    """Damage one file of a tiny reranker and score pairs with it; return whether scores came out."""
    rng = random.Random(seed)
    name = rng.choice(NAMES)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(reranker_dir(name), folder)
    chosen = rng.choice(sorted(file for file in folder.iterdir() if file.suffix in (".json", ".safetensors")))
    mutate_file(reranker_dir(name) / chosen.name, chosen, rng)
    try:
        with opened(folder) as reranker:
            assert np.isfinite(score(reranker, _PAIRS)).all()
            return True
    except EmbeddingError:
        return False
    except Exception as error:
        raise AssertionError(f"mutant {seed}: {chosen.name} of {name}") from error
