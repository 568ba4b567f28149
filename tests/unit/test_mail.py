"""The texts of the mails: for a person, of allowed classes only, and with nothing in them that is not on the list."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.notifications import mail
from shared.contract.events import Message
from tests.support.post import parsed

NOW = datetime(2026, 11, 28, 14, 0, 0, 123456, tzinfo=UTC)
CASE = "01936b5e-1111-7111-8111-111111111111"
FACTS = {
    "case": CASE,
    "scope": "account",
    "until": "2026-11-28T15:00:00Z",
    "unused_credit": "12.34 USD",
    "workspaces": "ws-1, ws-2",
    "without_administrator": "ws-2",
    "requested": "2026-11-28T14:00:00Z",
    "confirmed": "2026-11-29T08:30:00+01:00",
    "certified_by": "2026-12-29T07:30:00Z",
}


def written(template: str, **changes: Any) -> mail.Outbound:
    given: dict[str, Any] = {
        "cause": "cause-1",
        "sender": "steward@gateway.example",
        "recipient": "ada@example.org",
        "facts": FACTS,
        "code": "AB12CD34",
        "requested_at": NOW,
    }
    return mail.compose(template, **(given | changes))


def test_there_is_a_text_for_every_template_of_the_contract_and_no_other() -> None:
    assert set(mail.TEMPLATES) == set(get_args(Message.model_fields["template"].annotation))
    assert set(mail.KINDS) == set(get_args(Message.model_fields["kind"].annotation))


@pytest.mark.parametrize("kind", ["marketing", "news", "offer", ""])
def test_no_other_class_of_mail_can_be_made(kind: str) -> None:
    with pytest.raises(ValueError, match="nothing else is ever sent"):
        mail.Template(kind, "Only today", frozenset(), lambda facts, code: "")


@pytest.mark.parametrize("template", mail.TEMPLATES)
def test_a_mail_is_plain_text_in_short_lines_without_links_or_pictures(template: str) -> None:
    raw = mail.as_bytes(written(template))
    message = parsed(raw)
    assert sorted(message.keys()) == sorted(mail.HEADERS)
    assert message.get_content_type() == "text/plain" and not message.is_multipart()
    assert raw.isascii() and b"\r\n" in raw and not re.search(rb"(?<!\r)\n", raw)
    assert all(len(line) <= 76 for line in message.get_content().splitlines())
    assert not re.search(r"https?:|www\.|<[a-z]|&[a-z]+;", message.get_content())
    assert message["From"] == "Steward <steward@gateway.example>"
    assert message["To"] == "ada@example.org"
    assert message["Date"].datetime == NOW.replace(microsecond=0)


def test_a_request_says_what_is_lost_what_cannot_be_undone_and_by_when() -> None:
    for template in ("verify", "erasure_requested"):
        text = " ".join(written(template).text.split())
        assert " AB12CD34 " in text
        assert "until 28 November 2026, 15:00 UTC" in text
        assert "nobody can undo it" in text
        assert "Unused credit is lost: 12.34 USD." in text
        assert "These workspaces go with it: ws-1, ws-2." in text
        assert "go unless you name a successor: ws-2." in text
        assert "within 30 days" in text
        assert "Without the code nothing is deleted" in text
        assert f"Reference: {CASE}" in text


def test_what_is_not_lost_is_not_mentioned() -> None:
    text = " ".join(written("verify", facts={"unused_credit": "0.00 USD", "scope": "member"}).text.split())
    assert "credit" not in text and "successor" not in text and "workspaces" not in text and "Reference" not in text
    assert "delete what a workspace of others knows of you" in text


def test_the_last_mail_says_what_is_left_and_how_the_certificate_is_read_offline() -> None:
    text = " ".join(written("erasure_completed", code=None).text.split())
    assert "On 28 November 2026, 14:00 UTC you asked us to delete your account" in text
    assert "confirmed it on 29 November 2026, 07:30 UTC. It is done, and nobody can bring it back." in text
    assert "run out by 29 December 2026, 07:30 UTC at the latest" in text
    assert "neither us nor a network" in text and "`steward certificate verify`" in text
    assert "we destroy it now that this mail is sent" in text


def test_the_last_mail_about_a_workspace_does_not_say_goodbye_to_its_owner() -> None:
    text = written("erasure_completed", facts={"scope": "workspace"}).text
    assert "last mail" not in text and "a workspace of yours" in text
    assert "the workspace\nws-1" in written("verify", facts={"scope": "workspace", "workspaces": "ws-1"}).text


def test_a_mail_that_needs_a_code_is_not_written_without_one() -> None:
    with pytest.raises(ValueError, match="needs a code"):
        written("verify", code=None)


@pytest.mark.promise(26)
@given(st.dictionaries(st.from_regex(r"[a-z_]{1,32}", fullmatch=True), st.just("canary-4f1d"), max_size=6))
def test_a_fact_that_is_not_on_the_list_does_not_leave(more: dict[str, str]) -> None:
    for name, template in mail.TEMPLATES.items():
        unlisted = {key: value for key, value in more.items() if key not in template.facts}
        assert mail.as_bytes(written(name, facts=FACTS | unlisted)) == mail.as_bytes(written(name))


def test_the_same_cause_gives_the_same_mail_and_another_cause_another_message_id() -> None:
    assert mail.as_bytes(written("verify")) == mail.as_bytes(written("verify"))
    first, second = written("verify").message_id, written("verify", cause="cause-2").message_id
    assert first != second and "cause-1" not in first
    assert re.fullmatch(r"<[0-9a-f]{32}@gateway\.example>", first)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ada@example.org", "ada@example.org"),
        ("  ada.b+c@mail.example.org ", "ada.b+c@mail.example.org"),
        ("ada@bücher.example", "ada@xn--bcher-kva.example"),
        ("root@localhost", "root@localhost"),
        ("ada", None),
        ("@example.org", None),
        ("ada@", None),
        ("ada lovelace@example.org", None),
        ("ada@example.org>\r\nRCPT TO:<eve@example.org", None),
        ("ada\r\nBcc: eve@example.org\r\n@example.org", None),
        ("ada@exa mple.org", None),
        ("ada..b@example.org", None),
        ("ada@example..org", None),
        ("a" * 65 + "@example.org", None),
        ("Ada <ada@example.org>", None),
    ],
)
def test_an_address_is_plain_or_none(text: str, address: str | None) -> None:
    assert mail.mailbox(text) == address


@given(st.text(max_size=80))
def test_whatever_counts_as_an_address_is_one_word_without_control_characters(text: str) -> None:
    address = mail.mailbox(text)
    assert address is None or (
        address.isascii() and re.fullmatch(r"[!-~]+", address) and not set('<>"(),:;\\') & set(address)
    )


def test_tries_come_later_and_later_and_at_least_hourly() -> None:
    waits = [mail.retry_at(attempts, NOW) - NOW for attempts in range(1, 40)]
    assert waits[:4] == [timedelta(seconds=s) for s in (15, 30, 60, 120)]
    assert waits == sorted(waits) and waits[-1] == timedelta(hours=1)
