"""The emitter: how a platform sends its events to the mesh. See README.md; platforms import it as `steward`."""

from .emitter import Closed, Emitter, Full, Refused, Stats, seal

__all__ = ["Closed", "Emitter", "Full", "Refused", "Stats", "seal"]
