"""The runtime: consume a batch, change PostgreSQL, publish, exactly once; jobs; tasks; reads."""

from shared.mesh.service import Batch, Done, Footprint, Later, Partitioned, Received, Rights, Service, Task
from shared.mesh.transaction import Transaction

__all__ = [
    "Batch",
    "Done",
    "Footprint",
    "Later",
    "Partitioned",
    "Received",
    "Rights",
    "Service",
    "Task",
    "Transaction",
]
