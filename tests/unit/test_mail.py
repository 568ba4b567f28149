"""The texts of the mails: for a person, of allowed classes only, and with nothing in them that is not on the list."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.notifications import mail
from shared.contract.events import CaseState, DenialReason, Message, RequestKind
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
    "kind": "access",
    "received": "2026-11-28T14:00:00Z",
    "answer_by": "2026-12-12T08:00:00Z",
    "answered": "2026-12-01T08:00:00Z",
    "recorded": "2026-12-01T08:00:00Z",
    "corrected": "2026-12-01T08:00:00Z",
    "changed": "2026-12-01T08:00:00Z",
    "field": "name",
    "reason": "no_match",
    "state": "denied",
    "recipient": "Superior Court of California, County of San Francisco",
    "instrument": "search warrant 26-1183",
    "basis": "Cal. Penal Code 1546.1",
    "date": "2026-10-01T08:00:00Z",
}
LINK = "https://gateway.example/packages/9f2c-canary"


def written(template: str, **changes: Any) -> mail.Outbound:
    given: dict[str, Any] = {
        "cause": "cause-1",
        "sender": "steward@gateway.example",
        "recipient": "ada@example.org",
        "facts": FACTS,
        "code": "AB12CD34",
        "requested_at": NOW,
        "link": LINK,
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
    links = [LINK] if mail.TEMPLATES[template].needs_link else []
    assert re.findall(r"https?:\S+", message.get_content()) == links
    assert not re.search(r"www\.|<[a-z]|&[a-z]+;", message.get_content())
    assert f"Reference: {CASE}" in message.get_content()
    if mail.TEMPLATES[template].needs_code:
        assert "    AB12CD34" in message.get_content().splitlines()
    else:
        assert "AB12CD34" not in message.get_content()
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


def test_a_mail_that_needs_a_link_is_not_written_without_one() -> None:
    with pytest.raises(ValueError, match="needs a link"):
        written("copy_ready", link=None)


@pytest.mark.parametrize("template", mail.TEMPLATES)
def test_a_mail_says_something_even_if_no_fact_comes_with_it(template: str) -> None:
    """No fact is needed, and none that is missing leaves a hole: no `None`, no dangling word."""
    text = written(template, facts={}).text
    assert "None" not in text and "  " not in text.replace("    AB12CD34", "").replace("\n  ", "\n")
    assert not re.search(r" (of|by|until)[.,]", text) and "Reference" not in text


def words(template: str, **facts: str) -> str:
    return " ".join(written(template, facts={"case": CASE} | facts).text.split())


def test_an_acknowledgement_says_what_came_and_when_an_answer_comes() -> None:
    text = words("acknowledgement", kind="access", received=FACTS["received"], answer_by=FACTS["answer_by"])
    assert "We have your request of 28 November 2026, 14:00 UTC for a copy of your data." in text
    assert "You get an answer by 12 December 2026, 08:00 UTC at the latest." in text
    assert "your request." in words("acknowledgement", kind="something new")


@pytest.mark.promise(54)
def test_who_asks_is_told_what_was_asked_and_what_to_do_if_it_was_somebody_else() -> None:
    text = words("verify_identity", kind="portability", received=FACTS["received"], until=FACTS["until"])
    assert "for a copy of your data, to take along" in text and "until 28 November 2026, 15:00 UTC" in text
    assert "Do not give the code to anybody who asks you for it" in text and "nobody gets anything" in text


def test_a_copy_says_where_it_lies_until_when_and_how_it_opens() -> None:
    text = words("copy_ready", until=FACTS["until"])
    assert f" {LINK} " in text and "until 28 November 2026, 15:00 UTC" in text and "410 (gone)" in text
    assert "age format" in text and "passphrase" in text and "private key" in text
    assert "`steward package open`" in text
    assert "sell no data" in words("categories_ready")


@pytest.mark.promise(42)
def test_a_change_of_address_says_to_each_of_the_two_what_it_has_to_know() -> None:
    assert "Without this code the address stays as it is" in words("address_old")
    assert "Without the code we do not use this address" in words("address_new")
    changed = words("address_changed", changed=FACTS["changed"])
    assert "On 1 December 2026, 08:00 UTC the address of your account was changed" in changed
    assert "For 7 days" in changed and "Write to our support at once" in changed
    assert "ada@" not in changed


def test_a_correction_says_what_was_corrected_and_not_how() -> None:
    text = words("corrected", field="key_name", value="canary", corrected=FACTS["corrected"])
    assert "correct the name of an API key" in text and "canary" not in text


@pytest.mark.parametrize("reason", get_args(DenialReason))
def test_every_denial_has_a_reason_in_words_and_a_way_on(reason: str) -> None:
    text = words("denied", reason=reason, kind="access")
    assert "The reason: " in text and reason not in text.replace("other", "") and "complain to the authority" in text
    assert text != words("denied", reason="need_user_verification" if reason == "other" else "other", kind="access")
    assert f"The reason: {text.split('The reason: ')[1].split('.')[0]}." in words(
        "status", state="denied", reason=reason
    )


def test_every_request_and_every_state_of_the_contract_has_words() -> None:
    plain = words("acknowledgement")
    assert all(words("acknowledgement", kind=kind) != plain for kind in get_args(RequestKind))
    told = {words("status", state=state) for state in get_args(CaseState)}
    assert len(told) == len(get_args(CaseState))


def test_an_agent_hears_how_the_request_stands_and_nothing_of_the_person() -> None:
    text = words("status", state="fulfilled", kind="access", workspaces="ws-1", scope="account", reason="no_match")
    assert "It is done. What the person is to get went to the person alone." in text
    assert "ws-1" not in text and "reason" not in text


@pytest.mark.promise(31)
def test_a_disclosure_says_what_was_disclosed_to_whom_and_why() -> None:
    given = {name: FACTS[name] for name in ("recipient", "instrument", "basis", "date")}
    text = words("disclosure", scope="connections of March 2026", **given)
    for value in (
        FACTS["recipient"],
        FACTS["instrument"],
        FACTS["basis"],
        "connections of March 2026",
        "1 October 2026",
    ):
        assert value in text


def order(template: str, **changes: Any) -> Any:
    given: dict[str, Any] = dict.fromkeys(("account", "case", "address", "proof", "link"))
    return SimpleNamespace(
        **(given | {"template": template, "kind": "privacy", "account": "acc-1", "case": CASE} | changes)
    )


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (order("verify", kind="account", proof="a proof"), "kind"),
        (order("verify"), "code"),
        (order("verify", proof="a proof", account=None, address="sealed"), "code"),
        (order("verify", proof="a proof", case=None), "code"),
        (order("verify", proof="a proof"), None),
        (order("copy_ready"), "link"),
        (order("copy_ready", link="sealed", account=None), "link"),
        (order("copy_ready", link="sealed"), None),
        (order("status", account=None, case=None), "recipient"),
        (order("status", account=None, case=None, address="sealed"), None),
        (order("erasure_completed", account=None), None),
        (order("address_new", proof="a proof"), "recipient"),
        (order("address_old", proof="a proof", address="sealed"), "recipient"),
        (order("address_new", proof="a proof", address="sealed"), None),
    ],
)
def test_an_order_that_cannot_be_carried_out_is_refused_with_a_word(asked: Any, reason: str | None) -> None:
    found = mail.unfit(asked)
    assert (found and found[0]) == reason


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (LINK, True), ("http://localhost:8080/p/1", True), ("javascript:alert(1)", False), ("https://a b", False),
        ("https://a\r\nBcc: eve@example.org", False), ("https://b\u00fccher.example", False), ("https://" + "a" * 901, False),
    ],
)  # fmt: skip
def test_a_link_is_one_line_of_ascii(text: str, good: bool) -> None:
    assert mail.linkable(text) is good


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
