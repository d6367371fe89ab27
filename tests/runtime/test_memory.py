"""How much memory is left: on the machine, in its containers, in the address space."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from akidb_mlx_plugin.errors import ServiceUnavailableError
from akidb_mlx_plugin.runtime import memory

GIB = 1 << 30


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="not Linux")
def test_this_machine_has_memory_left() -> None:
    left = memory.available_memory()
    assert left is not None
    assert 1 << 20 < left < 1 << 50


@pytest.mark.skipif(shutil.which("ps") is None, reason="no ps on this machine")
def test_every_way_to_read_resident_memory(tmp_path: Path) -> None:
    assert memory.resident_bytes() == pytest.approx(memory.resident_bytes(tmp_path), rel=0.2)
    assert memory.resident_bytes() > 1 << 20


def test_the_machine(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16000000 kB\nMemFree:  100 kB\nMemAvailable:    2048 kB\n")
    assert memory._available_on_linux(meminfo) == 2 << 20
    assert memory._available_on_linux(tmp_path / "absent") is None


def test_control_groups_of_either_version(tmp_path: Path) -> None:
    assert memory._left_in_control_groups(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 4096\n")
    assert memory._left_in_control_groups(tmp_path) is None
    (tmp_path / "memory.max").write_text(f"{GIB}\n")
    # The kernel reclaims inactive file pages first.
    assert memory._left_in_control_groups(tmp_path) == GIB - 5 + 4096
    old = tmp_path / "old"
    (old / "memory").mkdir(parents=True)
    (old / "memory" / "memory.limit_in_bytes").write_text(f"{GIB}\n")
    (old / "memory" / "memory.usage_in_bytes").write_text("7\n")
    (old / "memory" / "memory.stat").write_text("total_inactive_file 9\n")
    assert memory._left_in_control_groups(old) == GIB - 7 + 9


def test_the_tightest_of_nested_control_groups_counts(tmp_path: Path) -> None:
    def limit(folder: Path, size: int, names: tuple[str, str] = ("memory.max", "memory.current")) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in zip((*names, "memory.stat"), (str(size), "0", ""), strict=True):
            (folder / name).write_text(value)

    process = tmp_path / "process"
    process.mkdir()
    (process / "cgroup").write_text("9:name=systemd:/a\n4:cpu,memory:/job/step\n0::/user.slice/session.scope\n")
    root = tmp_path / "groups"
    limit(root / "user.slice", 6 * GIB)
    limit(root / "user.slice" / "session.scope", 7 * GIB)
    assert memory._left_in_control_groups(root, process) == 6 * GIB
    limit(root / "memory" / "job" / "step", 3 * GIB, ("memory.limit_in_bytes", "memory.usage_in_bytes"))
    assert memory._left_in_control_groups(root, process) == 3 * GIB
    limit(root / "memory" / "job", 2 * GIB, ("memory.limit_in_bytes", "memory.usage_in_bytes"))
    assert memory._left_in_control_groups(root, process) == 2 * GIB
    limit(root / "another.slice", GIB)
    assert memory._left_in_control_groups(root, process) == 2 * GIB


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="not Linux")
def test_a_limited_address_space_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.left_of_address_space() is None or memory.left_of_address_space() > 0  # type: ignore[operator]
    (tmp_path / "statm").write_text("1000 500 1 1 0 1 0")
    monkeypatch.setattr(memory.resource, "getrlimit", lambda _: (GIB, GIB))
    monkeypatch.setattr(memory.resource, "getpagesize", lambda: 4096)
    assert memory.left_of_address_space(tmp_path) == GIB - 4096 * 1000
    assert memory.left_of_address_space(tmp_path / "absent") is None
    monkeypatch.setattr(memory.resource, "getrlimit", lambda _: (memory.resource.RLIM_INFINITY,) * 2)
    assert memory.left_of_address_space(tmp_path) is None


def test_a_model_that_cannot_fit_is_refused_by_name() -> None:
    with pytest.raises(ServiceUnavailableError, match=r"^big-model needs 5\.09 GiB of memory and 5\.00 GiB are left"):
        memory.check_memory(5 * GIB, "big-model", available=5 * GIB)
    memory.check_memory(4 * GIB, "big-model", available=5 * GIB)


def test_in_a_limited_address_space_threads_and_batches_need_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "left_of_address_space", lambda: GIB)
    monkeypatch.setattr(memory, "available_memory", lambda: GIB)
    memory.check_memory(GIB // 4, "a-model")
    with pytest.raises(
        ServiceUnavailableError, match=r"a-model needs 1\.25 GiB of address space \(ulimit -v\) and 1\.00"
    ):
        memory.check_memory(3 * GIB // 4, "a-model")
    memory.check_batch(1024, 3072, "a-model")
    with pytest.raises(ServiceUnavailableError, match="a batch of 16384 tokens for a-model needs"):
        memory.check_batch(16384, 3072, "a-model")


def test_nothing_is_refused_where_memory_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    monkeypatch.setattr(memory, "left_of_address_space", lambda: None)
    memory.check_memory(1 << 60, "big-model")
    memory.check_batch(1 << 40, 3072, "big-model")
