"""`akidb-mlx doctor` on machines with an Apple GPU, by what MLX says of them; products are the CPU's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from akidb_mlx_plugin.benchmarks import products
from akidb_mlx_plugin.cli import doctor_gpu
from akidb_mlx_plugin.runtime import devices
from akidb_mlx_plugin.runtime.workers import WorkerPool


@pytest.fixture(autouse=True)
def _small_product(monkeypatch: pytest.MonkeyPatch) -> None:
    # A CPU takes seconds for 4-bit products in bfloat16 as large as a model's.
    monkeypatch.setattr(doctor_gpu, "_TOKENS", 8)
    monkeypatch.setattr(products, "_INPUTS", 64)
    monkeypatch.setattr(products, "_OUTPUTS", 64)


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool("cpu", 1)
    yield pool
    pool.close()


def findings(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch, architecture: str, macos: str) -> dict[str, list[str]]:
    monkeypatch.setattr(devices.mx, "device_info", lambda device: {"architecture": architecture})
    monkeypatch.setattr(doctor_gpu.platform, "mac_ver", lambda: (macos, ("", "", ""), ""))
    return {check: [found, remedy] for check, found, remedy in doctor_gpu.check_gpu(pool)}


def test_an_m1(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(pool, monkeypatch, "applegpu_g13g", "15.1")
    assert "(applegpu_g13g)" in found["chip"][0]
    assert found["macOS"] == ["15.1", ""]
    assert found["number format"][0].startswith("float16")
    assert found["forward pass"][0] == "up to 2,048 tokens"
    assert "TFLOP/s" in found["4-bit products"][0]


@pytest.mark.parametrize(
    ("architecture", "macos", "remedy"),
    [
        ("applegpu_g14s", "13.6.1", "macOS 14 or later"),
        ("applegpu_g17s", "26.1", "26.2 or later"),
        ("applegpu_g17s", "26.2", ""),
        ("applegpu_g16d", "14.0", ""),
    ],
)
def test_the_system(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch, architecture: str, macos: str, remedy: str
) -> None:
    found = findings(pool, monkeypatch, architecture, macos)["macOS"]
    assert found[0] == macos
    assert remedy in found[1]
    assert bool(remedy) == bool(found[1])


def test_a_large_chip_and_another_makers_gpu(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(pool, monkeypatch, "applegpu_g16s", "15.0")
    assert found["number format"][0].startswith("bfloat16")
    assert found["forward pass"][0] == "up to 4,096 tokens"
    other = findings(pool, monkeypatch, "sm_90", "")
    assert other.keys() == {"number format", "forward pass", "4-bit products"}
