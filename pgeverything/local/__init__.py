"""The private local PostgreSQL server, for machines and moments without another one.

:func:`ensure` finds it running or makes it run, :func:`status` looks, :func:`stop` ends it.
"""

from ..errors import LocalServerError
from .cluster import LocalServer, LocalStatus
from .server import ensure, status, stop

__all__ = ["LocalServer", "LocalServerError", "LocalStatus", "ensure", "status", "stop"]
