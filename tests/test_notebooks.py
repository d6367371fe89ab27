"""Every notebook runs top to bottom in a real kernel, offline, and leaves nothing behind."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
_TIMEOUT_S = 240

# MLX keeps what it compiles for a CPU in the temporary folder.
_MLX_KERNELS = "mlx"
_REMEDY = "the notebooks need their extra: pip install -e '.[notebook]'"

nbformat = pytest.importorskip("nbformat", reason=_REMEDY)


def test_all_six_are_found() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06"]


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The temporary folder of all kernels, so that MLX compiles its kernels there once."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture
def kernel_environment(tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel inherits: no hub, and this source tree where the package is not installed."""
    root = Path(__file__).parent.parent
    paths = [str(root), str(root / "integrations"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.slow
@pytest.mark.usefixtures("kernel_environment", "minilm_dir")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path: Path, tmp_path: Path, temporary: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason=_REMEDY)
    pytest.importorskip("ipykernel", reason=_REMEDY)
    work = tmp_path / "work"
    work.mkdir()
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=_TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(work)}},
    )
    client.execute()
    assert list(work.iterdir()) == []
    assert all(done == total for done, total in _progress_bars(notebook))
    assert [entry.name for entry in temporary.iterdir() if entry.name != _MLX_KERNELS] == []


def _progress_bars(notebook: Any) -> list[tuple[str, str]]:
    """Return the last count and the total that each progress widget shows; what it shows then stays in the notebook."""
    kind = "application/vnd.jupyter.widget-state+json"
    state = notebook.metadata.get("widgets", {}).get(kind, {}).get("state", {})
    shown = [output for widget in state.values() for output in widget["state"].get("outputs", [])]
    texts = [output["data"]["text/plain"] for output in shown if "text/plain" in output.get("data", {})]
    return [match.groups() for text in texts for match in re.finditer(r"(\d+)/(\d+)", text)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_are_of_one_clean_run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_name_no_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    pictures = re.compile(r'"image/png": "[^"]*"')
    assert not re.search(r"(?<![\w.])/(home|Users|root|tmp|work|private|var)/", pictures.sub("", text))
