"""The Grafana dashboard and the `metrics` commands agree with what is exposed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from queue_fakes import GatedEngine
from typer.testing import CliRunner

from akidb_mlx_plugin.metrics import dashboard_json, exposition
from akidb_mlx_plugin.metrics.specs import METRICS
from akidb_mlx_plugin.service import EmbeddingService


def exposed_names() -> set[str]:
    return {sample.name for family in text_string_to_metric_families(exposition()) for sample in family.samples}


class TestDashboard:
    def queries(self) -> list[str]:
        dashboard = json.loads(dashboard_json())
        return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]

    def test_every_query_names_a_metric_that_exists(self, service: EmbeddingService, engine: GatedEngine) -> None:
        engine.load_seconds = 1.0
        service.embed_batch(["a"])
        exposed = exposed_names()
        asked = {name for query in self.queries() for name in re.findall(r"\b(?:embedding|process)_\w+", query)}
        assert asked - exposed == set()
        for family in ("latency_ms_bucket", "requests_total", "texts_total", "batch_size_bucket", "queue_length"):
            assert f"embedding_{family}" in asked
        assert "process_resident_memory_bytes" in asked

    def test_every_label_in_a_query_exists(self) -> None:
        labels = {spec.name: {*spec.labels, "le", "instance"} for spec in METRICS}
        for query in self.queries():
            names = re.findall(r"\b(?:embedding|process)_\w+", query)
            known = [labels[re.sub(r"_(bucket|sum|count)$", "", name)] for name in names]
            asked = {label.strip() for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(",")}
            asked |= set(re.findall(r"(\w+)(?:=~|!=|=)\"", query))
            assert known, query
            assert all(asked <= of_metric for of_metric in known), query

    @pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool comes with Debian's prometheus")
    def test_promtool_parses_every_query(self, tmp_path: Path) -> None:
        rules: list[dict[str, Any]] = [
            {"record": f"query:{i}", "expr": query.replace("$__rate_interval", "1m").replace("$model", ".*")}
            for i, query in enumerate(self.queries())
        ]
        file = tmp_path / "rules.yaml"
        file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
        check = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, check=False)
        assert check.returncode == 0, check.stdout + check.stderr


class TestCommands:
    def test_dashboard(self) -> None:
        from akidb_mlx_plugin.cli.metrics import app

        result = CliRunner().invoke(app, ["dashboard"])
        assert result.output == dashboard_json()

    def test_list(self, service: EmbeddingService, engine: GatedEngine) -> None:
        from akidb_mlx_plugin.cli.metrics import app

        engine.load_seconds = 1.0
        service.embed_batch(["a"])
        result = CliRunner().invoke(app, ["list", "--json"])
        listed = {row["metric"] for row in json.loads(result.output)}
        assert listed == {spec.name for spec in METRICS}
        families = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in exposed_names()}
        assert listed <= families
        assert {name for name in families if name.startswith("embedding_")} - listed <= {
            name.removesuffix("_total") for name in listed
        }
