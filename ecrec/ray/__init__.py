"""ecrec on Ray: servers as actors on different nodes, restarted elsewhere by Ray; the traffic stays ecrec's own."""

from ecrec.ray.cluster import Cluster, connect
from ecrec.ray.rows import Rows

__all__ = ["Cluster", "Rows", "connect"]
