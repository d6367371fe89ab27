"""Prometheus metrics, in their own registry, and a Grafana dashboard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from akidb_mlx_plugin._lazy import import_when_asked

if TYPE_CHECKING:
    from akidb_mlx_plugin.metrics.exporter import (
        MetricsServer,
        dashboard_json,
        exposition,
        metrics_registry,
        start_metrics_server,
    )

__all__ = ["MetricsServer", "dashboard_json", "exposition", "metrics_registry", "start_metrics_server"]

__getattr__ = import_when_asked(__name__, dict.fromkeys(__all__, "exporter"))
