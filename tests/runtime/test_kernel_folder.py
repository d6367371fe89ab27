"""Kernels that MLX compiles for a Linux CPU: loaded from a folder of this user's alone, or not at all."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from akidb_mlx_plugin.nn import compiled
from akidb_mlx_plugin.nn.activations import _Fused
from akidb_mlx_plugin.nn.compiled import without_kernels
from akidb_mlx_plugin.runtime import kernel_folder

GOLDEN = Path(__file__).parents[1] / "golden"

pytestmark = pytest.mark.skipif(not kernel_folder.IS_GUARDED, reason="a Mac's temporary folder is the user's alone")


@pytest.fixture(autouse=True)
def _on_the_cpu() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


@pytest.fixture(name="home")
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of its own, and a temporary folder that must stay empty."""
    home, shared = tmp_path / "home", tmp_path / "shared"
    home.mkdir()
    shared.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(shared))
    # pytest's folder lies in /tmp/pytest-of-<user>, which is private.
    monkeypatch.setattr(kernel_folder.tempfile, "gettempdir", lambda: str(shared))
    for remembered in (kernel_folder._private_folder, kernel_folder._warn_once):
        remembered.cache_clear()
    yield home
    assert list(shared.rglob("*.so")) == []
    for remembered in (kernel_folder._private_folder, kernel_folder._warn_once):
        remembered.cache_clear()


def libraries(home: Path) -> list[Path]:
    return sorted(home.rglob("*.so"))


# MLX remembers the kernels of a process: each test that compiles has a constant of its own.
def fused(constant: float) -> _Fused:
    return _Fused(lambda x: x * x + constant)


@pytest.mark.slow
def test_a_kernel_is_compiled_into_a_folder_of_the_users_alone(home: Path) -> None:
    x = mx.array([1.0, 2.0])
    assert fused(0.125)(x).tolist() == [1.125, 4.125]
    (library,) = libraries(home)
    for folder in (kernel_folder._private_folder(), home / ".cache" / "akidb" / "kernels"):
        assert folder is not None
        assert library.is_relative_to(folder)
    assert kernel_folder._private_folder().stat().st_mode & 0o777 == 0o700  # type: ignore[union-attr]


def test_the_environment_is_as_before(home: Path) -> None:
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_char_p
    before = dict(os.environ)
    seen: list[bytes] = []
    assert kernel_folder.load_kernel(lambda: seen.append(libc.getenv(b"TMPDIR")))
    assert seen == [os.fsencode(kernel_folder._private_folder())]  # type: ignore[arg-type]
    assert libc.getenv(b"TMPDIR") == os.fsencode(before["TMPDIR"])
    assert dict(os.environ) == before
    os.unsetenv("TMPDIR")
    assert kernel_folder.load_kernel(lambda: None)
    assert libc.getenv(b"TMPDIR") is None


@pytest.mark.slow
def test_half_a_library_is_compiled_again(home: Path) -> None:
    """As a kill or a full disk leaves it: loading one would end the process by SIGBUS."""
    kernel_folder.load_kernel(lambda: mx.eval(mx.compile(lambda x: x * x + 0.375)(mx.zeros(2))))
    (whole,) = libraries(home)
    content = whole.read_bytes()
    # In another file's place: this process has the library open, and would end by SIGBUS itself.
    whole.unlink()
    whole.write_bytes(content[:3000])
    (whole.parent / "libplanted.so").write_bytes(b"")
    kernel_folder.load_kernel(lambda: None)
    assert libraries(home) == []
    whole.write_bytes(content)
    kernel_folder.load_kernel(lambda: None)
    assert libraries(home) == []


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b'{"a.so": 1}'])
def test_a_damaged_list_counts_as_none(home: Path, content: bytes) -> None:
    kernel_folder.load_kernel(lambda: None)
    folder = kernel_folder._private_folder()
    assert folder is not None
    (folder / "a.so").write_bytes(b"not complete")
    (folder / "libraries.json").write_bytes(content)
    assert kernel_folder.load_kernel(lambda: None)
    assert libraries(home) == []


def test_what_cannot_be_compiled_is_computed_without(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = home / "bin" / "g++"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\necho 'g++: no space left on device' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{compiler.parent}{os.pathsep}{os.environ['PATH']}")
    function = fused(0.625)
    for _ in range(2):
        assert function(mx.array([1.0, 2.0])).tolist() == [1.625, 4.625]
    assert caplog.text.count("runs without MLX's compiled kernels") == 1
    assert "no space left on device" in caplog.text
    # The others still work, and so does MLX on this thread.
    assert mx.sum(mx.ones(100)).item() == 100


class TestPlace:
    def test_is_the_temporary_folder_without_a_home(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/proc/nowhere")
        folder = kernel_folder._private_folder()
        assert folder == home.parent / "shared" / f"akidb-mlx-kernels-{os.geteuid()}"
        assert folder.stat().st_mode & 0o777 == 0o700

    def test_is_nowhere_where_nothing_can_be_made(
        self, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("HOME", "/proc/nowhere")
        monkeypatch.setattr(kernel_folder.tempfile, "gettempdir", lambda: "/proc/nowhere")
        assert fused(0.875)(mx.array([1.0])).tolist() == [1.875]
        assert fused(0.875)(mx.array([1.0, 2.0])).tolist() == [1.875, 4.875]
        assert "no folder for compiled kernels" in caplog.text

    def test_is_no_link(self, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "kernels").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OSError, match="not a folder that only this user can write to"):
            kernel_folder._make_private(tmp_path / "kernels")

    def test_is_writable_for_no_other(self, tmp_path: Path) -> None:
        (tmp_path / "kernels").mkdir()
        (tmp_path / "kernels").chmod(0o777)
        with pytest.raises(OSError, match="not a folder that only this user can write to"):
            kernel_folder._make_private(tmp_path / "kernels")

    def test_belongs_to_this_user(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "kernels").mkdir()
        monkeypatch.setattr(os, "geteuid", lambda: 54_321)
        with pytest.raises(OSError, match="not a folder that only this user can write to"):
            kernel_folder._make_private(tmp_path / "kernels")

    @pytest.mark.parametrize(("mode", "safe"), [(0o755, True), (0o777, False), (0o1777, True), (0o775, False)])
    def test_lies_where_nobody_can_replace_it(self, tmp_path: Path, mode: int, safe: bool) -> None:
        shared = tmp_path / "shared"
        shared.mkdir()
        shared.chmod(mode)
        if safe:
            kernel_folder._make_private(shared / "kernels")
        else:
            with pytest.raises(OSError, match=f"others can replace .*: {shared}"):
                kernel_folder._make_private(shared / "kernels")

    @pytest.mark.parametrize("name", ['a"b', "a$(b)", "a`b`", "a\\b", "a\nb"])
    def test_has_a_name_that_a_shell_takes_as_it_is(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(OSError, match="special to a shell"):
            kernel_folder._make_private(tmp_path / name)


def test_others_code_is_not_compiled_and_the_switch_is_put_back(home: Path) -> None:
    mine = mx.compile(lambda x: x * x + 0.4375)
    with without_kernels(), without_kernels():
        assert mine(mx.array([2.0])).tolist() == [4.4375]
        assert not compiled._compiles()
    assert compiled._compiles()
    mx.disable_compile()
    try:
        with without_kernels():
            pass
        assert not compiled._compiles()
    finally:
        mx.enable_compile()


PROGRAM = """
import sys, numpy as np
from pathlib import Path
from akidb_mlx_plugin.inference.embedder import Embedder
for folder in sys.argv[2:]:
    with Embedder.load(Path(folder), device="cpu") as embedder:
        batches = (["a"], ["hello", "hello world " * 9], ["word " * 200] * 99)
        rows = [embedder.embed(texts).embeddings for texts in batches]
        np.save(f"{sys.argv[1]}-{Path(folder).parent.name}.npy", np.concatenate(rows))
"""


@pytest.mark.slow
def test_no_library_of_the_shared_folder_is_looked_at(home: Path) -> None:
    """Rotary positions of one head and of many, both activations' forms, and a model of mlx-lm."""
    shared = home.parent / "shared"
    models = [str(GOLDEN / name / "model") for name in ("bert", "qwen3", "gemma3_text", "granite")]

    def run(name: str, models: list[str]) -> list[np.ndarray]:
        environment = {**os.environ, "HOME": str(home), "TMPDIR": str(shared)}
        output = str(home.parent / name)
        subprocess.run([sys.executable, "-c", PROGRAM, output, *models], check=True, env=environment, timeout=280)
        return [np.load(f"{output}-{Path(model).parent.name}.npy") for model in models]

    first = run("first", models)
    assert list(shared.iterdir()) == []
    assert len(libraries(home)) > 5
    for library in libraries(home):
        library.write_bytes(library.read_bytes()[:3000])
    for before, after in zip(first[:2], run("second", models[:2]), strict=True):
        np.testing.assert_allclose(before, after, atol=1e-5)
