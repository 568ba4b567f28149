"""The policy file: a closed schema, no contradiction, and no change without a new date."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import pytest

import shared.policy
from services.billing.ledger import BillingConfig
from shared.contract.topics import TOPICS
from shared.policy import PolicyError, digest_of, load_policy, policy, renewed
from shared.policy.roles import ACTIONS, ROLES
from shared.privacy.data_map import Column, DataUse, foreign_uses
from tests.support.policies import NEW_DATE, TEXT, changed, sealed


def test_the_file_of_this_tree_holds() -> None:
    assert load_policy(TEXT) == policy()
    assert renewed(TEXT).endswith(policy().digest)


def test_what_it_says() -> None:
    known = policy()
    day = timedelta(days=1)
    assert (known.request_log_default_days, known.request_log_max_days) == (30, 90)
    assert (known.ip_max_days, known.security_max_days) == (30, 90)
    assert (known.closure_cap_days, known.erasure_cap_days, known.confirmation_days) == (30, 30, 7)
    assert (known.code_attempts, known.address_settle_days, known.package_days) == (5, 7, 7)
    assert {it.extension for it in known.deadlines.values()} == {0}
    assert known.tombstone_life == (known.backup_days + 7) * day + known.topic_max == 21 * day
    lengths = {name: (it.length, it.unit, it.starts, it.promise) for name, it in known.deadlines.items()}
    assert lengths == {
        "acknowledgement": (2, "business_days", "receipt", 67),
        "answer": (10, "business_days", "receipt", 68),
        "copy": (30, "days", "identity_verified", 40),
        "ccpa": (45, "days", "receipt", 55),
        "erasure": (30, "days", "confirmation", 45),
        "child_erasure": (30, "days", "child_report", 57),
        "policy_change": (30, "days", "last_notice", 65),
    }
    assert known.books_end("US", 2026) == date(2034, 1, 1)
    assert known.books_end("EU", 2026) == date(2037, 1, 1)
    terms = BillingConfig.parse(files("services.billing").joinpath("billing.toml").read_text(encoding="utf-8"))
    assert set(known.billing_years) == {*terms.class_of_jurisdiction.values(), terms.OTHER}


def test_the_closed_list_is_the_data_maps_vocabulary() -> None:
    assert {*policy().uses.allowed, "none"} == set(get_args(DataUse))


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "value", "says"),
    [
        ("request_log.default_days", "31", r"default_days is 31, above the 30 .* 5\): lower it"),
        ("request_log.max_days", "91", r"max_days is 91, above the 90 .* 6\): lower it"),
        ("request_log.max_days", "29", r"default_days is above request_log\.max_days"),
        ("request_log.default_days", "-1", "it has to be at least 0"),
        ("ip.max_days", "31", r"ip\.max_days is 31, above the 30 .* 15\): lower it"),
        ("security.max_days", "91", r"security\.max_days is 91, above the 90 .* 35\)"),
        ("closure.cap_days", "31", r"closure\.cap_days is 31, above the 30 .* 33\)"),
        ("erasure.cap_days", "31", r"erasure\.cap_days is 31, above the 30 .* 45\)"),
        ("erasure.cap_days", "29", r"deadlines\.erasure is above erasure\.cap_days"),
        ("topics.max_days", "8", r"topics\.max_days is 8, above the 7"),
        ("topics.trim_hold_hours", "168", "nothing would be trimmed"),
        ("dead_letters.days", "8", r"dead_letters\.days is 8, above the 7"),
        ("sweep.bound_hours", "25", r"sweep\.bound_hours is 25, above the 24"),
        ("deduplication.window_days", "7", "window_days must outlive the topics"),
        ("deduplication.window_days", "21", "a tombstone would go before the ids"),
        ("deduplication.window_days", '"10"', "window_days has to be a whole number"),
        ("deduplication.window_days", "true", "window_days has to be a whole number"),
        ("requests.records_months", "23", "below the 24 months"),
        ("requests.confirmation_days", "45", "after the answer is due"),
        ("requests.code_attempts", "11", r"a code stands few \(promise 54\): take 10 or less"),
        ("requests.code_attempts", "0", "it has to be at least 1"),
        ("requests.address_settle_days", "0", "it has to be at least 1"),
        ("requests.address_settle_days", "", r"requests\.address_settle_days is missing"),
        ("requests.package_days", "31", r"package_days is above erasure\.cap_days"),
        ("deadlines.ccpa.extension", "46", r"ccpa\.extension is 46, above the 45 that a law knows: lower it"),
        ("deadlines.ccpa.extension", "-1", "it has to be at least 0"),
        ("deadlines.copy.extension", "1", r"copy\.extension is 1, above the 0 that a law knows"),
        ("deadlines.answer.extension", "1", r"answer\.extension is 1, above the 0"),
        ("roles.boss", '["read"]', r"nothing reads roles\.boss"),
        ("roles.legal", "", r"roles\.legal is missing"),
        ("roles.support", '["triage", "erase"]', r"roles\.support may 'erase', which is no action on a case: take one of"),
        ("roles.support", '["triage", "triage"]', r"roles\.support says something twice"),
        ("roles.legal", '["decide_child", "disclose"]', "no role may 'hold', so that a case which needs it waits for ever"),
        ("deadlines.acknowledgement.business_days", "3", r"acknowledgement is 3, above the 2 .* 67\): lower it"),
        ("deadlines.acknowledgement.warn_hours", "48", "it would always warn"),
        ("deadlines.answer.business_days", "11", r"deadlines\.answer is 11, above the 10 .* 68\)"),
        ("deadlines.ccpa.days", "46", r"deadlines\.ccpa is 46, above the 45 .* 55\)"),
        ("deadlines.copy.days", "31", r"deadlines\.copy is 31, above the 30 .* 40\)"),
        ("deadlines.copy.starts", '"whenever"', "starts at 'whenever'"),
        ("deadlines.erasure.days", "31", r"deadlines\.erasure is 31, above the 30 .* 45\)"),
        ("deadlines.child_erasure.days", "31", r"child_erasure is 31, above the 30 .* 57\)"),
        ("deadlines.policy_change.days", "29", r"policy_change is 29, below the 30 .* 65\): raise it"),
        ("calendar.zone", '"America/Los_Angles"', "calendar.zone is 'America/Los_Angles'"),
        ("calendar.weekend", '["saturday", "sonntag"]', "sonntag is no day of the week"),
        ("calendar.weekend", '["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]',
         "leaves no business day"),
        ("calendar.holidays", "[2026-01-01, 2026-01-01]", "holidays says something twice"),
        ("calendar.holidays", "[2026-01-01T00:00:00Z]", "a list of dates"),
        ("stores.kafka", '"eu-west-1"', r"kafka is in 'eu-west-1', and data stays in 'us' \(promise 58\): move"),
        ("stores.kafka", '""', "kafka is in '', and data stays in 'us'"),
        ("stores.kafka", '"usa"', "kafka is in 'usa'"),
        ("stores.kafka", "", "kafka is missing: add it"),
        ("billing.years.US", "0", "it has to be at least 1"),
        ("version", '"12"', "a version starts with its date"),
        ("effective_date", '"soon"', "effective_date has to be a date"),
        ("effective_date", "soon", "no TOML"),
        ("rollup.weeks", "2", r"nothing reads rollup\.weeks"),
        ("marketing", "true", "nothing reads marketing"),
        ("sealed.allow_plain", "0", "true or false"),
        ("recipients.payments.fields", "[]", "has to list what may leave"),
        ("recipients.payments.fields", '["amount", "*"]', "has to list what may leave"),
        ("recipients.payments.use", '"marketing.advertising"',
         r"recipient payments uses personal data for 'marketing\.advertising'; the policy rules 'marketing' out"),
        ("recipients.payments.use", '"sales"', "rules 'sales' out"),
        ("recipients.payments.use", '"marketing_research"', r"not in \[uses\] allowed"),
        ("readers.metering", '["train_ai_system"]', "reader metering uses personal data for 'train_ai_system'"),
        ("readers.metering", '["essential"]', r"not in \[uses\] allowed"),
        ("uses.allowed", '["marketing"]', r"\[uses\] allowed uses personal data for 'marketing'"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused(where: str, value: str, says: str) -> None:
    text = changed((where, value))
    with pytest.raises(PolicyError, match=says) as raised:
        load_policy(text if where == "effective_date" else sealed(text))
    assert str(raised.value).endswith(".")


def test_a_value_made_by_hand_is_checked_as_well() -> None:
    with pytest.raises(PolicyError, match=r"ip\.max_days is 31"):
        replace(policy(), ip_max_days=31)


def test_another_gateway_may_promise_something_else() -> None:
    other = load_policy(sealed(changed(
        ("promised.ip_days", "60"), ("ip.max_days", "60"), ("region", '"eu"'),
        *((f"stores.{store}", '"eu-central-1"') for store in ("kafka", "postgres", "keys", "exports")),
        ("calendar.zone", '"Europe/Berlin"'),
    )))  # fmt: skip
    assert (other.ip_max_days, other.calendar.zone, other.stores["keys"]) == (60, "Europe/Berlin", "eu-central-1")


# --- what staff may do -------------------------------------------------------------------------------------------


def test_staff_may_do_what_stands_there_and_nothing_else() -> None:
    allowed = {(role, action) for role in ROLES for action in ACTIONS if policy().refusal(role, action) is None}
    assert allowed == {(role, action) for role, its in policy().roles.actions.items() for action in its}
    assert {action for role, action in allowed if role == "support"} == {"triage", "escalate", "read"}
    assert {action for role, action in allowed if role == "privacy"} == {*ACTIONS} - {"hold", "disclose"}
    assert {role for role, action in allowed if action == "decide_child"} == {"privacy", "legal"}


@pytest.mark.parametrize(
    ("role", "action", "says"),
    [
        ("support", "deny", "the role 'support' may not 'deny' (promise 62): ask privacy"),
        ("operations", "decide_child", "ask privacy or legal"),
        ("boss", "read", "'boss' is none of the policy's [roles]: take one of support, privacy, legal, operations"),
        ("", "read", "'' is none of"),
        ("privacy", "erase", "'erase' is no action on a case: take one of triage, deny"),
        ("Privacy", "read", "'Privacy' is none of"),
    ],
)
def test_a_refusal_says_whom_to_ask(role: str, action: str, says: str) -> None:
    assert says in (policy().refusal(role, action) or "")


# --- a change has a date -----------------------------------------------------------------------------------------


@pytest.mark.promise(66)
@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("rollup.months", "12"),
        ("calendar.holidays", "[2026-12-25]"),
        ("recipients.mail.fields", '["address", "subject_line", "text", "name"]'),
        ("deadlines.ccpa.promise", "56"),
    ],
)
def test_changed_content_needs_a_new_date(where: str, value: str) -> None:
    text = changed((where, value))
    with pytest.raises(PolicyError, match="changed without a new effective date"):
        load_policy(text)
    # The tool does not help around it either: the old date gets no digest for a new content.
    with pytest.raises(PolicyError, match="effective_date has not"):
        renewed(text)
    dated = changed(*NEW_DATE, text=text)
    with pytest.raises(PolicyError, match="changed without a new effective date"):
        load_policy(dated)
    found = load_policy(changed(("digest", f'"{renewed(dated)}"'), text=dated))
    assert found.effective_date == date(2031, 2, 3)
    assert found.digest != policy().digest


@pytest.mark.promise(66)
def test_a_new_date_alone_needs_its_digest() -> None:
    with pytest.raises(PolicyError, match="changed without a new effective date"):
        load_policy(changed(*NEW_DATE))


def test_words_about_the_content_are_no_content() -> None:
    said = TEXT.replace("\nmonths = 13", "\n# A year, and a month for last year's report.\nmonths   = 13")
    assert said != TEXT
    assert load_policy(said).digest == policy().digest


def test_the_tool_prints_the_digest(tmp_path: Path) -> None:
    file = tmp_path / "other.toml"

    def tool() -> subprocess.CompletedProcess[str]:
        command = (sys.executable, "-m", "shared.policy", str(file))
        return subprocess.run(command, capture_output=True, text=True, cwd=Path(shared.__path__[0]).parent)

    text = changed(("rollup.months", "12"))
    file.write_text(text, encoding="utf-8")
    done = tool()
    assert (done.returncode, done.stdout) == (1, "")
    assert "effective_date has not" in done.stderr
    text = changed(*NEW_DATE, text=text)
    file.write_text(text, encoding="utf-8")
    done = tool()
    assert (done.returncode, done.stdout) == (0, f'digest = "{digest_of(text)}"\n')
    assert load_policy(re.sub(r'(?m)^digest = ".*"\n', done.stdout, text)).rollup_months == 12


# --- who reads ---------------------------------------------------------------------------------------------------

COLUMN = Column("t", "c", "user.unique_id", "essential.service", "request", "request_log", "delete_row", "contract")


@pytest.mark.parametrize(
    ("reader", "use", "says"),
    [
        ("metering", "essential.service", None),
        ("metering", "marketing", "rules 'marketing' out"),
        ("metering", "essential.service.security", "do not declare it"),
        ("stranger", "essential.service", "not among the policy's"),
    ],
)
def test_a_reader_uses_what_it_declared(reader: str, use: Any, says: str | None) -> None:
    found = foreign_uses(reader, [replace(COLUMN, use=use)])
    assert len(found) == (says is not None)
    assert says is None or says in found[0]


def test_what_is_about_nobody_needs_no_use() -> None:
    nobody = [replace(COLUMN, category="none", use="none")]
    assert foreign_uses("audit", nobody) == ()
    assert len(foreign_uses("stranger", nobody)) == 1


def test_whoever_reads_personal_topics_is_a_reader_of_the_policy() -> None:
    readers = {reader for topic in TOPICS if topic.personal for reader in topic.readers}
    assert readers - {"gateway"} <= policy().uses.readers.keys()


# --- another file ------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], shared.policy.Policy]:
    """Reads the policy anew, with STEWARD_POLICY set; the rest of the run keeps its own."""

    def read(path: str) -> shared.policy.Policy:
        monkeypatch.setenv(shared.policy.VARIABLE, path)
        return policy.__wrapped__()

    return read


def test_another_file_is_taken_by_its_path(tmp_path: Path, fresh: Callable[[str], shared.policy.Policy]) -> None:
    other = tmp_path / "other.toml"
    other.write_text(sealed(changed(("rollup.months", "6"))), encoding="utf-8")
    assert fresh(str(other)).rollup_months == 6
    assert fresh("") == policy()
    with pytest.raises(PolicyError, match="STEWARD_POLICY names a file that cannot be read"):
        fresh(str(tmp_path / "nowhere.toml"))
