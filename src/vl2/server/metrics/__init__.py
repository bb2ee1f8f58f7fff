"""What is measured, and how Prometheus reads it."""

from vl2.server.metrics.requests import Metrics, TokenClock, forget_process
from vl2.server.metrics.routes import metrics_routes, read_stats

__all__ = ["Metrics", "TokenClock", "forget_process", "metrics_routes", "read_stats"]
