"""What is measured, and how Prometheus reads it."""

from vl2.server.metrics.requests import Metrics, forget_process
from vl2.server.metrics.routes import metrics_routes, read_stats
from vl2.server.metrics.tokens import TokenClock

__all__ = ["Metrics", "TokenClock", "forget_process", "metrics_routes", "read_stats"]
