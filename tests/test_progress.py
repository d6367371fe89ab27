"""Bars on a terminal, in a pipe, and in notebooks with and without ipywidgets."""

from __future__ import annotations

import builtins
import os
import sys
import threading
from pathlib import Path

import pytest

from akidb_mlx_plugin import progress
from akidb_mlx_plugin.progress import is_notebook, is_plain_notebook, progress_bar, spinner

ROOT = Path(__file__).parents[1]


class ZMQInteractiveShell:
    """Its name is how rich and this package recognize the kernel of a notebook."""


class TerminalInteractiveShell:
    """IPython on a terminal."""


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)


@pytest.fixture
def plain_notebook(notebook: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)


def test_ipython_on_a_terminal_is_no_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_notebook()
    monkeypatch.setattr(builtins, "get_ipython", TerminalInteractiveShell, raising=False)
    assert not is_notebook()
    assert not is_plain_notebook()


@pytest.mark.usefixtures("notebook")
def test_ipywidgets_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ipywidgets")
    assert (is_notebook(), is_plain_notebook()) == (True, False)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert is_plain_notebook()


@pytest.mark.usefixtures("plain_notebook")
@pytest.mark.filterwarnings("error")
def test_a_notebook_without_widgets_gets_text_and_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("collection 'docs'", 40) as advance:
        # From several threads, as an upsert counts.
        threads = [threading.Thread(target=lambda: [advance(1) for _ in range(10)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with progress_bar("unknown", None) as advance:
        advance(3)
    with spinner("waiting"):
        pass
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "collection 'docs': 100%" in shown.err
    assert "40/40" in shown.err
    assert "unknown: 3it" in shown.err
    assert "waiting …\n" in shown.err


@pytest.mark.filterwarnings("error")
def test_elsewhere_it_is_rich(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.std", None)
    with progress_bar("docs", 2) as advance:
        advance(2)
    assert "2/2" in capsys.readouterr().err


def test_every_bar_is_drawn_here() -> None:
    names = ("rich.progress", "rich.status", "rich.live", ".status(", "import tqdm", "from tqdm", "track(")
    own = Path(progress.__file__)
    found = {
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for folder in ("akidb_mlx_plugin", "integrations")
        for file in (ROOT / folder).rglob("*.py")
        if file != own
        for line in file.read_text("utf-8").splitlines()
        # Others name the type in their annotations.
        if any(name in line for name in names) and not line.startswith("    from rich.progress import Progress")
    }
    # A download's bar must be a subclass of huggingface_hub's.
    assert found == {"akidb_mlx_plugin/hub/client.py: from huggingface_hub.utils.tqdm import tqdm"}


@pytest.mark.slow
@pytest.mark.parametrize("widgets", [True, False], ids=["with ipywidgets", "without"])
def test_a_real_kernel(widgets: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("ipywidgets")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    bar = f"""
import sys
if not {widgets}:
    sys.modules["ipywidgets"] = None
from akidb_mlx_plugin.progress import import_tqdm_quietly, progress_bar
import_tqdm_quietly()
import huggingface_hub.utils.tqdm
with progress_bar("docs", 2) as advance:
    advance(2)
"""
    # The import that is kept quiet above is one that warns.
    again = "del sys.modules['tqdm.autonotebook']; import tqdm.autonotebook"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in (bar, again)])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    shown, warned = (
        "".join(output.text for output in cell.outputs if output.output_type == "stream") for cell in notebook.cells
    )
    widget = any(
        "application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in notebook.cells[0].outputs
    )
    assert widget == widgets
    assert ("docs: 100%" in shown) != widgets
    assert "Warning" not in shown
    assert ("IProgress not found" in warned) != widgets
