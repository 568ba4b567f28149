"""Personal data as declarations, from which the runtime expires, exports, restricts and erases."""

from __future__ import annotations

from shared.privacy.data_map import Column, DataMap, Holding, Rows, by_column, contradictions, personal, plain

__all__ = ["Column", "DataMap", "Holding", "Rows", "by_column", "contradictions", "personal", "plain"]
