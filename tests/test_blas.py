"""A real BLAS in front of MLX. Each case is a process of its own: a library's symbols are bound once."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from host_helpers import run_python

from akidb_mlx_plugin import blas

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="macOS brings Accelerate")

PRODUCT = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
{first}
import akidb_mlx_plugin
import mlx.core as mx
from akidb_mlx_plugin import blas
mx.eval(mx.ones((64, 64)) @ mx.ones((64, 64)))
print(blas.load_blas().name, blas.load_blas().path)
"""


@pytest.fixture(scope="module")
def found() -> blas.Blas:
    """The library that this machine has."""
    name, _, path = run_python(PRODUCT.format(first=""), environment={blas.LIBRARY_VARIABLE: ""}).strip().partition(" ")
    if name == "reference":
        pytest.skip("no fast BLAS on this machine")
    return blas.Blas(name, path)


def test_it_is_found_and_answers(found: blas.Blas, tmp_path: Path) -> None:
    run_python(
        PRODUCT.format(first=""),
        environment={blas.LIBRARY_VARIABLE: "", "LD_DEBUG": "bindings", "LD_DEBUG_OUTPUT": str(tmp_path / "bindings")},
    )
    (log,) = tmp_path.glob("bindings*")
    # The dynamic linker tells which library it gave to MLX for a matrix product.
    bound = re.findall(r"binding file \S*/libmlx\S* \[0\] to (\S+) .*`cblas_sgemm'", log.read_text(errors="replace"))
    assert bound
    assert {Path(file).name for file in bound} == {Path(found.path).name}


def test_a_library_of_ones_own(found: blas.Blas) -> None:
    printed = run_python(PRODUCT.format(first=""), environment={blas.LIBRARY_VARIABLE: found.path})
    assert printed == f"custom {found.path}\n"


def test_its_number_of_threads_can_be_set(found: blas.Blas) -> None:
    printed = run_python(
        """
        import ctypes
        from akidb_mlx_plugin import blas
        library = ctypes.CDLL(blas.load_blas().path)
        count = getattr(library, "MKL_Get_Max_Threads", None) or getattr(library, "openblas_get_num_threads", None)
        for threads in (1, 2):
            blas.set_blas_threads(threads)
            print(count() if count else threads)
        """,
        environment={blas.LIBRARY_VARIABLE: "", "MKL_DYNAMIC": "FALSE"},
    )
    assert printed == "1\n2\n"


@pytest.mark.parametrize("library", ["/no/such/library.so", "libc.so.6", __file__])
def test_a_wrong_library_is_a_typed_error_every_time(library: str) -> None:
    printed = run_python(
        """
        import akidb_mlx_plugin
        for attempt in range(2):
            try:
                import mlx.core
            except akidb_mlx_plugin.InvalidInputError as error:
                print(error)
        try:
            akidb_mlx_plugin.EmbeddingService("minilm-l6-v2").embed_batch(["a"])
        except akidb_mlx_plugin.InvalidInputError as error:
            print(error)
        """,
        environment={blas.LIBRARY_VARIABLE: library},
    )
    lines = printed.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"AKIDB_BLAS_LIBRARY={library!r} cannot be loaded") for line in lines)
    assert all(line.endswith("or unset it") for line in lines)


def test_mlx_imported_too_early_is_told_once() -> None:
    printed = run_python(PRODUCT.format(first="import mlx.core"), environment={blas.LIBRARY_VARIABLE: ""})
    warning, answer = printed.splitlines()
    assert "mlx was imported before akidb_mlx_plugin" in warning
    assert "import akidb_mlx_plugin first" in warning
    assert answer == "reference "


def test_none_at_all_is_told_with_the_remedy() -> None:
    nothing = "import akidb_mlx_plugin.blas as b; b._candidates = lambda: []"
    warning, answer = run_python(PRODUCT.format(first=nothing), environment={blas.LIBRARY_VARIABLE: ""}).splitlines()
    assert "no fast BLAS found" in warning
    assert "akidb-mlx-plugin[linux]" in warning
    assert answer == "reference "


def test_importing_the_package_loads_no_library() -> None:
    printed = run_python(
        """
        import akidb_mlx_plugin
        from akidb_mlx_plugin import blas
        print(blas._loaded, "libmkl_rt" in open("/proc/self/maps").read())
        """
    )
    assert printed == "None False\n"
