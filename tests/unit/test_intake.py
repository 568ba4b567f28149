"""The subject line that opens a request, as people and their mail programs write it."""

from __future__ import annotations

import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.retention.intake import LIMIT, classify, plain


def wide(line: str) -> str:
    """The line in full-width letters, as East Asian keyboards write it."""
    return "".join(chr(ord(one) + 0xFEE0) if one.isalpha() else one for one in line)


EXACT = [
    "CCPA Request", "CCPA Request.", "ccpa request", "CCPA REQUEST", '"CCPA Request."', '"CCPA Request".', "“CCPA Request.”",
    "„CCPA Request“", "«CCPA Request»", "'CCPA Request'", "  CCPA   Request  ", "Re: CCPA Request", "RE: Fwd: CCPA Request.",
    "AW: WG: CCPA Request", "Re:Re:CCPA Request", "Re[2]: CCPA Request", "RE (3): CCPA Request", "SV: CCPA Request",
    "[External] CCPA Request", "[EXTERNAL] Re: [#48213] CCPA Request", "Fwd: \"CCPA Request.\"", '"Fwd: CCPA Request"',
    "CCPA\r\n Request", "CCPA\tRequest", "CCPA\u00a0Request", "CCPA\u3000Request", "\ufeffCCPA Request",
    "CC\u200bPA Requ\u00adest", "Re\uff1aCCPA Request", "Subject: CCPA Request", "CCPA Request...", "CCPA Request…",
    "\u202aCCPA Request\u202c", "回复: CCPA Request", "CCPA Request\ufe0f", wide("CCPA Request"),
    "\U0001d402\U0001d402\U0001d40f\U0001d400 Request",  # bold letters of mathematics
]  # fmt: skip
NEAR = [
    "CPPA request", "CCPA-Request", "CCPA_Request", "Request CCPA", "CCPARequest", "CCPA Reqest", "CCAP Request",
    "CCPA Requests", "CCPA Request!", "CCPA Request?", "CCPA  Request #2", "ccpa rights request", "CCPA",
    "CCPA request: please delete my account", "My CCPA Request", "[CCPA Request]",
    "California Consumer Privacy Act request", "Calfornia consumer request", "data request",
    "Data Subject Access Request", "privacy request", "Privcay request", "Question about your privacy policy",
    "access to my personal data", "GDPR request", "DSAR", "DSGVO Auskunft", "delete my data",
    "Please delete my acount information", "erase my account", "Löschung meiner Daten", "Right to be forgotten",
    "right to know", "Do not sell my personal information", "request a copy of my data",
    "Request for California consumer rights", "CCPA opt-out", "CPRA", "Not a CCPA Request",
    "Re: CCPA Request (was: invoice)",
]  # fmt: skip
OTHER = [
    "", " ", ".", "Re:", '""', "[External]", "Invoice 2026-11", "Cannot sign in", "API returns 429", "Feature request",
    "Request timeout on /chat", "Delete my API key", "CPA license for our accountant", "Refund", "How do I rotate a key?",
    "🎉", "\x00\x01", "\ud800", "ccp", "Model data sheet", "Cannot access my account", "I want to know your prices",
]  # fmt: skip


@pytest.mark.promise(53)
@pytest.mark.parametrize(
    ("subject", "found"),
    [*((one, "ccpa") for one in EXACT), *((one, "near") for one in NEAR), *((one, "other") for one in OTHER)],
    ids=ascii,
)
def test_real_life(subject: str, found: str) -> None:
    assert classify(subject) == found


# --- however it is dressed up ------------------------------------------------------------------------------------

spaces = st.text(" \t\r\n\u00a0\u2003", max_size=3)
some_space = st.text(" \t\r\n\u00a0\u2003", min_size=1, max_size=3)
unseen = st.text("\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u202e\ufe0f", max_size=2)
prefix = st.sampled_from(
    ["Re:", "RE :", "re[4]:", "Fwd:", "FW:", "AW:", "wg:", "Antw:", "TR:", "[External]", "[EXT]", "[Ticket 12]"]
)
quotes = st.sampled_from([("", ""), ('"', '"'), ("“", "”"), ("'", "'"), ("„", "“"), ("«", "»"), ("<", ">")])


@st.composite
def dressed(draw: st.DrawFn) -> str:
    """The exact line as mail programs and people write it."""
    letters = [
        draw(st.sampled_from([one, one.lower(), one.upper(), wide(one)])) + draw(unseen) for one in "CCPARequest"
    ]
    words = "".join(letters[:4]) + draw(some_space) + "".join(letters[4:])
    left, right = draw(quotes)
    inside, outside = draw(st.sampled_from([("", ""), (".", ""), ("", "."), (".", ".")]))
    line = left + draw(spaces) + words + draw(spaces) + inside + right + outside
    run = "".join(draw(spaces) + one + draw(unseen) + draw(spaces) for one in draw(st.lists(prefix, max_size=6)))
    return draw(spaces) + draw(unseen) + run + line + draw(spaces)


@pytest.mark.promise(53)
@given(dressed())
def test_the_exact_line_opens_a_case_however_it_is_dressed(subject: str) -> None:
    assert classify(subject) == "ccpa"
    assert classify(f"Re: {subject}") == "ccpa"


@given(dressed(), st.sampled_from(["no", "not a", "x1", "!", "?", "2"]), st.booleans())
def test_a_word_more_is_a_near_miss(subject: str, more: str, before: bool) -> None:
    assert classify(f"{more} {subject}" if before else f"{subject} {more}") != "ccpa"


@given(st.sampled_from(["ccpa request", "ccparequest", "request ccpa"]), st.integers(0, 10), st.sampled_from("abcdxyz"))
def test_one_mistake_is_a_near_miss(line: str, place: int, letter: str) -> None:
    swapped = line[:place] + line[place + 1] + line[place] + line[place + 2 :] if place + 1 < len(line) else line
    for typo in (line[:place] + letter + line[place:], line[:place] + line[place + 1 :], swapped):
        assert classify(typo) != "other"


# --- whatever comes ----------------------------------------------------------------------------------------------

anything = st.text(st.characters(), max_size=60) | st.binary(max_size=60).map(
    lambda raw: raw.decode("utf-8", "surrogateescape")
)


@pytest.mark.promise(53)
@given(anything)
def test_it_never_raises_and_always_says_where_to(subject: str) -> None:
    assert classify(subject) in ("ccpa", "near", "other")


@given(anything | dressed() | st.text("re:[]ext. \"'“2(1) ccpaquest", max_size=40))
def test_what_is_plain_stays_as_it_is(subject: str) -> None:
    once = plain(subject)
    assert plain(once) == once
    assert classify(once) == classify(subject)


def test_every_character_has_one_form() -> None:
    for first in range(0, sys.maxunicode + 1, 256):
        once = plain("a".join(map(chr, range(first, first + 256))))
        assert plain(once) == once, hex(first)


def test_a_subject_that_does_not_end_is_read_in_bounded_time() -> None:
    for piece in ("CCPA Request ", "re:", "[", "[a] ", "\u0301\u0323", "\ufdfa", "privac ", '"', "\u200b", "a"):
        started = time.process_time()
        assert classify(piece * 1_000_000) in ("near", "other")
        assert time.process_time() - started < 1
    # What lies behind the limit is not looked at, so it is no reason to be sure.
    assert classify("CCPA Request" + " " * (LIMIT - 12)) == "ccpa"
    assert classify("CCPA Request" + " " * LIMIT + "is what this is not") == "near"
