"""The subject line of a mail to support: does it open a request as the policy says? Pure.

The policy asks for the subject line "CCPA Request." Whoever writes exactly that, however their mail program dresses it up,
has made a request. A near miss, and anything else, is looked at by a person: the word only says in which queue. So to be
near costs nothing, and the net is wide; to be exact starts a clock without a person, and the net is narrow.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

Found = Literal["ccpa", "near", "other"]

EXACT = "ccpa request"
LIMIT = 1_000
"""Characters of a subject that are looked at (a line of a mail has 998): the time this takes is bounded. More is never exact."""

_QUOTES = "\"'`<>«»\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u2039\u203a\u300c\u300d"
_AROUND = _QUOTES + " "
_AFTER = _AROUND + "."
# Answered and forwarded, in several languages, numbered or not; a gateway's mark in brackets, if something follows it.
_PREFIX = re.compile(
    r"(?:(?:re|fwd?|aw|wg|sv|vs|antw|tr|rv|res|enc|odp|pd|rif|ynt|回复|答复|转发|subject|betreff) ?(?:[\[(]?\d{1,3}[\])]?)? ?:"
    r"|\[[^\[\]]{1,40}\](?= *[^ ]))"
)
# Characters that nobody sees, besides those of the category Cf.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)

# Any of these is about privacy. A wish and a thing are, if they are two words: "data" alone is about anything, and so is
# "cannot access my account", which most mails to support say.
_LAWS = frozenset(("ccpa", "cpra", "gdpr", "dsgvo", "rgpd", "lgpd", "pipeda", "dsar", "dsr"))
_TOPICS = ("privacy", "datenschutz", "personenbezogene", "datenauskunft", "confidentialité")
_WISHES = (
    "copy", "correct", "delete", "deletion", "erase", "erasure", "export", "forget", "forgotten", "information", "object",
    "personal", "portability", "rectification", "rectify", "remove", "removal", "request", "restrict", "right", "rights",
    "sell", "löschen", "löschung", "auskunft",
)  # fmt: skip
_THINGS = (
    "account", "california", "consumer", "data", "forgotten", "information", "know", "personal", "profile", "record",
    "records", "subject", "daten", "konto",
)  # fmt: skip
_WORD = re.compile(r"[^\W_]{1,24}")


def classify(subject: str) -> Found:
    """Which queue a mail with this (decoded) subject belongs to. Never raises, whatever characters it has.

    `ccpa`: the policy's subject line, dressed up or not. `near`: like it, or about privacy. `other`: nothing of the kind.
    """
    text = plain(subject[:LIMIT])
    if text == EXACT and len(subject) <= LIMIT:
        return "ccpa"
    return "near" if _near(text) else "other"


def plain(subject: str) -> str:
    """`subject` without what mail programs add: one case, one form of each character, no prefixes, quotes, final dots."""
    text = _folded(subject)
    while True:
        text = text.lstrip(_AROUND).rstrip(_AFTER)
        prefix = _PREFIX.match(text)
        if prefix is None:
            return text
        text = text[prefix.end() :]


def _folded(text: str) -> str:
    """One form for what looks the same (NFKC, case), nothing invisible, single spaces."""
    seen = _seen(unicodedata.normalize("NFKC", _seen(text)).casefold())
    return " ".join(unicodedata.normalize("NFKC", seen).split())


def _seen(text: str) -> str:
    return "".join(one for one in _UNSEEN.sub("", text) if unicodedata.category(one) != "Cf")


def _near(text: str) -> bool:
    words = _WORD.findall(text)
    if _like("".join(words), "ccparequest", 2) or _like("".join(words), "requestccpa", 2):
        return True
    if not _LAWS.isdisjoint(words) or any(_among(word, _TOPICS) for word in words):
        return True
    wishes = {place for place, word in enumerate(words) if _among(word, _WISHES)}
    things = {place for place, word in enumerate(words) if _among(word, _THINGS) or _like(word, "ccpa", 1)}
    return bool(wishes and things) and len(wishes | things) > 1


def _among(word: str, known: tuple[str, ...]) -> bool:
    """Whether `word` is one of `known`, or one with a typing mistake: short words forgive none."""
    return word in known or any(_like(word, one, 1) for one in known if len(one) > 5)


def _like(a: str, b: str, most: int) -> bool:
    """Whether at most `most` mistakes make `a` of `b`: a letter more, less, another one, or two the wrong way round."""
    if abs(len(a) - len(b)) > most:
        return False
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, start=1):
        above, before, row = before, row, [i]
        for j, other in enumerate(b, start=1):
            cost = min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != other))
            if above and j > 1 and letter == b[j - 2] and a[i - 2] == other:
                cost = min(cost, above[j - 2] + 1)
            row.append(cost)
    return row[-1] <= most
