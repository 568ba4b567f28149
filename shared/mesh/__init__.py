"""The runtime: consume a batch, change PostgreSQL, publish, exactly once; jobs; tasks; reads."""

from shared.mesh.service import Batch, Done, Later, Partitioned, Received, Service, Task
from shared.mesh.transaction import Transaction

__all__ = ["Batch", "Done", "Later", "Partitioned", "Received", "Service", "Task", "Transaction"]
