"""What a provider answered, as exclusive token buckets and counts whose sums are checked. Pure, standard library only.

`read` takes the whole answer, an object that holds its usage part (a stream's last chunk), or the bare usage object.
The package is also shipped in a client: it imports nothing but itself.
"""

from .answers import FAMILIES_OF, read
from .reading import BUCKETS, COUNTS, FLAGS, MEANINGS, TIERS, Reading, UnreadableUsage

__all__ = ["BUCKETS", "COUNTS", "FAMILIES_OF", "FLAGS", "MEANINGS", "TIERS", "Reading", "UnreadableUsage", "read"]
