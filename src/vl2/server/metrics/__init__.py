"""What is measured, and how Prometheus reads it."""

from vl2.server.metrics.requests import Metrics, TokenClock
from vl2.server.metrics.routes import metrics_routes, read_stats

__all__ = ["Metrics", "TokenClock", "metrics_routes", "read_stats"]
