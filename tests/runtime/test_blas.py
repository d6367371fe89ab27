"""A real BLAS under MLX. Each case is a process of its own: a library is chosen once."""

from __future__ import annotations

import importlib.util
import os
import struct
import subprocess
import sys
import zipfile
from itertools import permutations
from pathlib import Path

import pytest
from host_helpers import run_python

from akidb_mlx_plugin.runtime import blas, elf

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="macOS brings Accelerate")

PRODUCT = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
{first}
import numpy as np
import mlx.core as mx
from akidb_mlx_plugin.runtime import blas
mx.set_default_device(mx.cpu)
found = blas.load_blas()
for dtype in (mx.float32, mx.complex64):
    a, b = (mx.random.normal(sides).astype(dtype) for sides in ((70, 130), (130, 90)))
    assert np.abs(np.array(a @ b) - np.array(a) @ np.array(b)).max() < 1e-3
print(found.name, found.path)
"""
# Where MLX's call of a matrix product ends: the library whose code lies at the address in its slot.
BOUND = """
slots = blas._Slots.of_mlx()
address = blas.read_slot(next(iter(slots._addresses["cblas_sgemm"])))
for line in open("/proc/self/maps"):
    span, *_, path = line.split()
    start, stop = (int(part, 16) for part in span.split("-"))
    if start <= address < stop:
        print(path)
"""
ENVIRONMENT = {blas.LIBRARY_VARIABLE: ""}


@pytest.mark.slow
def test_the_wheels_openblas_answers_whoever_imported_mlx_first() -> None:
    for first in ("", "import mlx.core", "import numpy, mlx.nn", "import akidb_mlx_plugin"):
        answer, bound = run_python(PRODUCT.format(first=first) + BOUND, environment=ENVIRONMENT).splitlines()
        name, _, path = answer.partition(" ")
        assert name in ("openblas", "mkl")
        assert Path(bound).samefile(path)


@pytest.mark.slow
def test_every_library_of_a_process_keeps_its_own_products() -> None:
    libraries = ["numpy", "mlx.core", *(["torch"] if importlib.util.find_spec("torch") else [])]
    for order in permutations(libraries):
        check = (
            "import torch; x = torch.randn(70, 130); y = torch.randn(130, 90); "
            "assert (x @ y - (x.double() @ y.double()).float()).abs().max() < 1e-3"
        )
        printed = run_python(
            PRODUCT.format(first="\n".join(f"import {library}" for library in order))
            + (check if "torch" in libraries else "")
            + "\nx = np.random.rand(70, 130); y = np.random.rand(130, 90)"
            + "\nassert np.allclose(x @ y, np.einsum('ij,jk', x, y))",
            environment=ENVIRONMENT,
        )
        assert printed.startswith(("openblas", "mkl"))


@pytest.mark.slow
def test_a_library_of_ones_own() -> None:
    path = run_python(PRODUCT.format(first=""), environment=ENVIRONMENT).split()[1]
    printed = run_python(PRODUCT.format(first=""), environment={blas.LIBRARY_VARIABLE: path})
    assert printed == f"custom {path}\n"


@pytest.mark.slow
def test_its_number_of_threads_can_be_set() -> None:
    printed = run_python(
        """
        from akidb_mlx_plugin.runtime import blas
        blas.load_blas()
        library = blas._in_use
        names = [f"{library.prefix}openblas_get_num_threads", "MKL_Get_Max_Threads"]
        count = next(getattr(library.handle, name) for name in names if hasattr(library.handle, name))
        for threads in (1, 2):
            blas.set_blas_threads(threads)
            print(count())
        """,
        environment=ENVIRONMENT | {"MKL_DYNAMIC": "FALSE"},
    )
    assert printed == "1\n2\n"


@pytest.mark.slow
@pytest.mark.skipif(os.cpu_count() == 1, reason="one core, one thread")
@pytest.mark.parametrize("library", ["openblas", "mkl"])
@pytest.mark.parametrize("spins", [False, True])
def test_its_threads_sleep_after_a_product_unless_the_user_says_otherwise(library: str, spins: bool) -> None:
    path = next((path for path, name in blas._candidates() if name == library), None)
    if path is None:
        pytest.skip(f"{library} is not installed")
    printed = run_python(
        f"""
        import os, time
        import numpy as np
        if {spins}:
            os.environ |= {{"OPENBLAS_THREAD_TIMEOUT": "30", "KMP_BLOCKTIME": "1000"}}
        before = dict(os.environ)
        from akidb_mlx_plugin.runtime import blas
        blas.load_blas()
        assert dict(os.environ) == before
        blas.set_blas_threads(2)
        a = np.ones((512, 512), dtype=np.float32)
        blas._in_use._multiply(a, a)
        begun = time.process_time()
        time.sleep(0.3)
        print(time.process_time() - begun)
        """,
        environment={blas.LIBRARY_VARIABLE: path},
    )
    assert (float(printed) > 0.05) == spins


@pytest.mark.slow
@pytest.mark.parametrize("library", ["/no/such/library.so", "libc.so.6", __file__])
def test_a_wrong_library_is_a_typed_error_every_time(library: str) -> None:
    printed = run_python(
        """
        import akidb_mlx_plugin
        for attempt in range(2):
            try:
                akidb_mlx_plugin.EmbeddingService("minilm-l6-v2").embed_batch(["a"])
            except akidb_mlx_plugin.InvalidInputError as error:
                print(error)
        """,
        environment={blas.LIBRARY_VARIABLE: library},
    )
    lines = printed.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"AKIDB_BLAS_LIBRARY={library!r} cannot be loaded") for line in lines)
    assert all(line.endswith("or unset it") for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("b._candidates = lambda: []", "no fast BLAS found; install one: pip install scipy-openblas32"),
        ("b.find_slots = lambda *_: {'cblas_sgemm': []}", "unexpected layout"),
        ("b.find_mappings = lambda *_: []", "unexpected layout"),
        (
            "b.write_slot = lambda *_: (_ for _ in ()).throw(OSError(13, 'Permission denied'))",
            "cannot give MLX a faster BLAS",
        ),
    ],
)
def test_without_one_mlx_computes_as_before_and_a_warning_says_why(fault: str, said: str) -> None:
    # `restore` writes too: it must not fail where nothing was changed.
    first = f"import akidb_mlx_plugin.runtime.blas as b; {fault}"
    if "write_slot" in fault:
        first += "; b._Slots.restore = lambda self: None"
    warning, answer = run_python(PRODUCT.format(first=first), environment=ENVIRONMENT).splitlines()
    assert warning.startswith("embedding on this CPU will be about 50 times slower")
    assert said in warning
    assert answer == "reference "


@pytest.mark.slow
def test_a_library_that_multiplies_wrongly_is_not_used() -> None:
    first = "import akidb_mlx_plugin.runtime.blas as b; b._Library._is_right = lambda self: False"
    warning, answer = run_python(PRODUCT.format(first=first), environment=ENVIRONMENT).splitlines()
    assert "no fast BLAS found" in warning
    assert answer == "reference "


@pytest.mark.slow
def test_a_product_of_mlx_that_is_wrong_is_noticed_and_its_blas_restored() -> None:
    printed = run_python(
        """
        import logging, sys
        logging.basicConfig(stream=sys.stdout, format="%(message)s")
        import numpy as np
        from akidb_mlx_plugin.runtime import blas
        # Another product than the caller wants, as a library with 64-bit sides would give.
        other = blas.ctypes.CFUNCTYPE(None)(lambda: None)
        blas._Library.products = {"cblas_sgemm": blas.ctypes.cast(other, blas.ctypes.c_void_p).value}
        from akidb_mlx_plugin.runtime.workers import WorkerPool
        import mlx.core as mx
        pool = WorkerPool("cpu", 1)
        a = np.random.rand(20, 30).astype(np.float32)
        print(np.allclose(pool.submit(lambda: np.array(mx.array(a) @ mx.array(a.T))).result(), a @ a.T, atol=1e-3))
        pool.close()
        """,
        environment=ENVIRONMENT,
    )
    warning, answer = printed.splitlines()
    assert "its own was restored" in warning
    assert answer == "True"


@pytest.mark.slow
def test_the_fastest_of_several_is_chosen_and_all_are_told() -> None:
    printed = run_python(
        """
        from akidb_mlx_plugin.runtime import blas
        path = blas._candidates()[0][0]
        speeds = iter([3.0, 7.0, 5.0])
        blas._candidates = lambda: [(path, "openblas"), (path, "mkl"), (path, "custom")]
        blas._Library.measure = lambda self: next(speeds)
        chosen = blas.load_blas()
        print(chosen.name, chosen.gflops, *((other.name, other.gflops) for other in chosen.others))
        """,
        environment=ENVIRONMENT,
    )
    assert printed == "mkl 7.0 ('custom', 5.0) ('openblas', 3.0)\n"


def test_importing_the_package_loads_no_library() -> None:
    printed = run_python(
        """
        import akidb_mlx_plugin
        from akidb_mlx_plugin.runtime import blas
        print(blas._loaded, "openblas" in open("/proc/self/maps").read().replace("numpy", ""))
        """
    )
    assert printed.startswith("None")


class TestSlots:
    @pytest.fixture
    def library(self) -> Path:
        spec = importlib.util.find_spec("mlx.core")
        assert spec is not None
        assert spec.origin is not None
        return Path(spec.origin).parent / "lib" / "libmlx.so"

    def test_of_an_imported_function_are_found_and_of_others_not(self, library: Path) -> None:
        slots = elf.find_slots(library, ("cblas_sgemm", "cblas_dgemm", "no_such_function"))
        assert len(slots["cblas_sgemm"]) == len(slots["cblas_dgemm"]) == 1
        assert slots["no_such_function"] == []

    def test_of_the_other_machine(self, tmp_path: Path) -> None:
        # A library of one import as an aarch64 linker lays it out, for there is none here to read.
        file = tmp_path / "lib.so"
        file.write_bytes(tiny_library(machine=183, kind=1026, slot=0x4018))
        assert elf.find_slots(file, ("cblas_sgemm",)) == {"cblas_sgemm": [0x4018]}
        file.write_bytes(tiny_library(machine=183, kind=1027, slot=0x4018))
        assert elf.find_slots(file, ("cblas_sgemm",)) == {"cblas_sgemm": []}

    @pytest.mark.parametrize("machine", [3, 243])
    def test_of_a_machine_that_is_not_known(self, machine: int, tmp_path: Path) -> None:
        file = tmp_path / "lib.so"
        file.write_bytes(tiny_library(machine=machine, kind=7, slot=8))
        with pytest.raises(ValueError, match=f"machine {machine}"):
            elf.find_slots(file, ("cblas_sgemm",))

    def test_of_something_else(self) -> None:
        with pytest.raises(ValueError, match="not a little-endian ELF-64"):
            elf.find_slots(Path(__file__), ("cblas_sgemm",))

    def test_a_read_only_page_is_writable_for_the_write_alone(self) -> None:
        printed = run_python(
            """
            import ctypes, mmap
            from akidb_mlx_plugin.runtime.elf import Mapping, read_slot, write_slot
            page = mmap.mmap(-1, mmap.PAGESIZE)
            address = ctypes.addressof(ctypes.c_char.from_buffer(page))
            libc = ctypes.CDLL(None)
            libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ)
            home = [Mapping(address, address + mmap.PAGESIZE, "r--p", 0)]
            write_slot(address + 16, 1234, home)
            print(read_slot(address + 16))
            permissions = [line.split()[1] for line in open("/proc/self/maps") if line.startswith(f"{address:x}-")]
            print(*permissions)
            try:
                write_slot(address - 8, 1, home)
            except OSError as error:
                print("refused")
            import os
            os._exit(0)
            """
        )
        value, permissions, refused = printed.splitlines()
        assert (value, refused) == ("1234", "refused")
        assert permissions.startswith("r--")


@pytest.mark.slow
def test_the_wheels_for_aarch64_have_the_slots_and_the_symbols(tmp_path: Path) -> None:
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (17, 27, 28, 35)]
    options = ["--no-deps", "--only-binary=:all:", "--python-version=3.11", *platforms, "-d", str(tmp_path)]
    command = [sys.executable, "-m", "pip", "download", "-q", *options, "mlx-cpu", "scipy-openblas32"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("the package index is out of reach")
    for wheel in tmp_path.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(tmp_path)
    slots = elf.find_slots(tmp_path / "mlx" / "lib" / "libmlx.so", ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm"))
    assert [len(places) for places in slots.values()] == [1, 1, 1]
    (openblas,) = tmp_path.glob("scipy_openblas32/lib/libscipy_openblas*.so")
    content = openblas.read_bytes()
    assert all(b"\0scipy_" + name in content for name in (b"cblas_sgemm\0", b"openblas_set_num_threads\0"))


def tiny_library(machine: int, kind: int, slot: int) -> bytes:
    """Return a shared library that imports `cblas_sgemm` and nothing else, addresses equal to places in the file."""
    dynamic, symbols, strings, relocations = 0x100, 0x200, 0x300, 0x380
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 3, machine, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 0x400, 0x400, 0x1000)
    points = struct.pack("<IIQQQQQQ", 2, 6, dynamic, dynamic, 0, 0x60, 0x60, 8)
    tags = struct.pack("<8Q", 5, strings, 6, symbols, 23, relocations, 2, 24) + bytes(32)
    table = bytes(24) + struct.pack("<IBBHQQ", 1, 0x12, 0, 0, 0, 0)
    content = bytearray(0x400)
    for place, part in (
        (0, header + load + points),
        (dynamic, tags),
        (symbols, table),
        (strings, b"\0cblas_sgemm\0"),
        (relocations, struct.pack("<QQq", slot, 1 << 32 | kind, 0)),
    ):
        content[place : place + len(part)] = part
    return bytes(content)
