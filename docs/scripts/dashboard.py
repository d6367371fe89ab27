"""Draw the Grafana dashboard as it looks under traffic: its own queries, answered by a real Prometheus.

    python docs/scripts/dashboard.py    # needs `prometheus` (Debian: apt install prometheus) and matplotlib

A service with MiniLM gets queries at a rate that rises in steps, and now and then a large request. Prometheus scrapes
it every second; each panel of `akidb-mlx metrics dashboard` is drawn from what it answers.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from importlib.resources import files
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from akidb_mlx_plugin import EmbeddingService
from akidb_mlx_plugin.benchmarks.corpus import popular_docstrings
from akidb_mlx_plugin.benchmarks.load import OpenLoop, poisson_arrivals
from akidb_mlx_plugin.metrics import start_metrics_server

PICTURE = Path(__file__).parents[1] / "images" / "dashboard.png"
MODEL = "minilm-l6-v2"
# Shares of what the machine can do, and the seconds of each step.
STEPS, STEP_S = (0.1, 0.3, 0.6, 0.3), 20
_WINDOW = "8s"
# What Grafana's units are called here, and what a value is multiplied with.
_UNITS = {
    "ms": ("ms", 1),
    "s": ("s", 1),
    "reqps": ("a second", 1),
    "cps": ("a second", 1),
    "bytes": ("MB", 1e-6),
}


def main() -> None:
    begun = time.time()
    with tempfile.TemporaryDirectory() as folder, EmbeddingService(MODEL) as service:
        metrics, port = start_metrics_server(0), free_port()
        config = Path(folder, "prometheus.yml")
        config.write_text(
            "scrape_configs:\n- job_name: akidb-mlx\n  scrape_interval: 1s\n  static_configs:\n"
            f'  - targets: ["127.0.0.1:{metrics.port}"]\n'
        )
        command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder}/data"]
        command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
        with subprocess.Popen(command) as prometheus:
            try:
                send(service)
                time.sleep(2)
                draw(port, begun)
            finally:
                prometheus.terminate()
        metrics.close()
    print("written:", PICTURE)


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def send(service: EmbeddingService) -> None:
    """Send queries in steps, and a large request in the middle of each step."""
    texts = [doc.text for doc in popular_docstrings(400)]
    questions = [" ".join(text.split()[:12]) for text in texts]
    service.embed_batch(questions[:10], kind="query")
    capacity = 200 / service.embed_batch(questions[:200], kind="query").usage.duration_ms * 1e3
    for share in STEPS:
        large = threading.Timer(STEP_S / 2, service.embed_batch, [texts[:100]])
        large.start()
        loop = OpenLoop(
            lambda i: service.submit(questions[i % len(questions)], kind="query"),
            poisson_arrivals(max(1, round(share * capacity)), seconds=STEP_S),
        )
        loop.run()
        large.join()


def draw(port: int, begun: float) -> None:
    """Draw every time series of the dashboard."""
    dashboard = json.loads((files("akidb_mlx_plugin.metrics") / "grafana.json").read_text("utf-8"))
    panels = [panel for panel in dashboard["panels"] if panel["type"] == "timeseries"]
    rows = -(-len(panels) // 3)
    figure = Figure(figsize=(13, 2.7 * rows), layout="constrained", facecolor="#f4f5f5")
    FigureCanvasAgg(figure)
    for number, panel in enumerate(panels, 1):
        axes = figure.add_subplot(rows, 3, number)
        unit, scale = _UNITS.get(panel["fieldConfig"]["defaults"].get("unit", ""), ("", 1))
        for target in panel["targets"]:
            for labels, times, values in ask(port, target["expr"], begun):
                shown = [value * scale for value in values]
                axes.plot([at - begun for at in times], shown, linewidth=1.2, label=legend(target, labels))
        axes.set_title(f"{panel['title']}, {unit}" if unit else panel["title"], loc="left", fontsize=10)
        axes.set_xlim(0, time.time() - begun)
        # Room for the legend above the lines.
        axes.set_ylim(0, (axes.get_ylim()[1] if axes.lines else 1) * 1.4)
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(frameon=False, fontsize=7, loc="upper left", ncols=2)
        else:
            axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", color="#57606a")
    figure.savefig(PICTURE, dpi=90)


def ask(port: int, expression: str, begun: float) -> list[tuple[dict[str, str], list[float], list[float]]]:
    """Return labels, times and values of each series that Prometheus answers a panel's query with."""
    query = expression.replace("$model", ".*").replace("$__rate_interval", _WINDOW).replace("$__interval", _WINDOW)
    fields = {"query": query, "start": begun, "end": time.time(), "step": 1}
    address = f"http://127.0.0.1:{port}/api/v1/query_range?{urllib.parse.urlencode(fields)}"
    with urllib.request.urlopen(address, timeout=30) as answer:
        series: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return [
        (one["metric"], [float(at) for at, _ in one["values"]], [float(value) for _, value in one["values"]])
        for one in series
    ]


def legend(target: dict[str, Any], labels: dict[str, str]) -> str:
    """Return a series' name, as Grafana fills it in."""
    name = target.get("legendFormat", "")
    for label, value in labels.items():
        name = name.replace("{{" + label + "}}", value)
    return name


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
