"""What is left of memory, by the machine and by its container."""

from __future__ import annotations

from pathlib import Path

import pytest

from akidb_mlx_plugin import memory
from akidb_mlx_plugin.errors import ServiceUnavailableError

GIB = 1 << 30


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="not Linux")
def test_this_machine_has_some() -> None:
    left = memory.available_memory()
    assert left is not None
    assert 1 << 20 < left < 1 << 50


def test_the_machines(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16000000 kB\nMemFree:  100 kB\nMemAvailable:    2048 kB\n")
    assert memory._available_on_linux(meminfo) == 2 << 20
    assert memory._available_on_linux(tmp_path / "absent") is None


def test_a_containers_of_either_version(tmp_path: Path) -> None:
    assert memory._left_in_container(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 4096\n")
    assert memory._left_in_container(tmp_path) is None
    (tmp_path / "memory.max").write_text(f"{GIB}\n")
    # Pages of files that nobody has looked at for a while are given back when memory is short.
    assert memory._left_in_container(tmp_path) == GIB - 5 + 4096
    old = tmp_path / "old"
    (old / "memory").mkdir(parents=True)
    (old / "memory" / "memory.limit_in_bytes").write_text(f"{GIB}\n")
    (old / "memory" / "memory.usage_in_bytes").write_text("7\n")
    (old / "memory" / "memory.stat").write_text("total_inactive_file 9\n")
    assert memory._left_in_container(old) == GIB - 7 + 9


def test_a_model_that_cannot_fit_is_refused_by_name() -> None:
    with pytest.raises(ServiceUnavailableError, match=r"^big-model needs 5\.09 GiB of memory and 5\.00 GiB are left"):
        memory.check_memory(5 * GIB, "big-model", available=5 * GIB)
    memory.check_memory(4 * GIB, "big-model", available=5 * GIB)


def test_where_nobody_knows_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    memory.check_memory(1 << 60, "big-model")
