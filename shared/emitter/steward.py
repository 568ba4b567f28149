"""Steward's events, for platforms: the emitter, and the contract it checks against (`steward.contract`).

In the wheel this file is `steward/__init__.py`, beside the packages that it stands on.
"""

from .emitter import Closed, Emitter, Full, Refused, Stats, seal

__all__ = ["Closed", "Emitter", "Full", "Refused", "Stats", "seal"]
