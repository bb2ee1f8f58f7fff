"""For all tests, before torch is imported anywhere: waiting threads do not spin for long, as in the engine."""

from vl2.engine.threads import limit_spinning

limit_spinning()
