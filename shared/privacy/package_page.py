"""The page of a package: what its files hold, why it is there and what one can do next, in plain words.

One file: no script, nothing from elsewhere, readable on a phone, in print, and by a screen reader.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import NamedTuple

from shared.policy import Policy
from shared.privacy.package_contents import Contents, Disclosed, Missing, Source
from shared.privacy.told import ToldColumn


class _Words(NamedTuple):
    """What a category of data is, and where it came from."""

    what: str
    origin: str


_YOU, _USE, _US = (
    "you, or somebody who runs your account or workspace",
    "your use of the service",
    "made by the service",
)
_CATEGORIES: Mapping[str, _Words] = {
    "user.account.settings": _Words("settings of the account or workspace", _YOU),
    "user.authorization.credentials": _Words("API keys and codes: what they are called, never the key itself", _YOU),
    "user.behavior": _Words("what you did with the service, and when", _USE),
    "user.behavior.purchase_history": _Words("what you bought, used and were charged", f"{_USE}, and your payments"),
    "user.childrens": _Words("data about a child", "whoever reported it"),
    "user.contact.email": _Words("your e-mail address", _YOU),
    "user.contact.organization": _Words("your organization", _YOU),
    "user.content.private": _Words("texts that were written about or by you", "you, or our support"),
    "user.device.cookie_id": _Words("a pseudonym of a session", "your device, when it connected"),
    "user.device.ip_address": _Words("an internet address", "your device, when it connected"),
    "user.name": _Words("your name", _YOU),
    "user.payment": _Words("means of payment, by reference, never a card number", "the payment processor"),
    "user.privacy_preferences": _Words("what you want done with your data", _YOU),
    "user.telemetry": _Words("technical measurements", _USE),
    "user.unique_id": _Words("ids by which the service tells accounts, workspaces, members and keys apart", _US),
    "user.unique_id.pseudonymous": _Words("numbers that stand for something without naming it", _US),
    "user.workplace": _Words("which member of our staff decided something", "our staff"),
}  # fmt: skip
_USES: Mapping[str, str] = {
    "analytics.reporting.system.performance": "measuring how the system performs",
    "essential.fraud_detection": "detecting fraud",
    "essential.legal_obligation": "doing what the law demands",
    "essential.service": "providing the service",
    "essential.service.authentication": "knowing who is signing in or asking",
    "essential.service.notifications.email": "sending you the mails that belong to the service",
    "essential.service.operations": "running the service",
    "essential.service.operations.improve": "improving how the service runs",
    "essential.service.operations.support": "helping you when you ask for support",
    "essential.service.payment_processing": "taking payments, and charging what was used",
    "essential.service.security": "keeping the service and your account secure",
    "finance": "keeping the books",
    "functional.service.improve": "improving the service",
    "third_party_sharing.legal_obligation": "giving what the law demands to those whom it names",
}
_GROUNDS: Mapping[str, str] = {
    "consent": "your consent (Article 6(1)(a) GDPR)",
    "contract": "the contract with you (Article 6(1)(b) GDPR)",
    "legal_obligation": "a legal obligation (Article 6(1)(c) GDPR)",
    "legitimate_interests": "legitimate interests (Article 6(1)(f) GDPR)",
}
_STARTS: Mapping[str, str] = {
    "account_closed": "from the closing of the account or workspace",
    "arrival": "from its arrival",
    "booking_year_end": "from the end of the booking year",
    "connection": "from the connection",
    "erasure_confirmed": "from the confirmation of an erasure",
    "event": "from what happened",
    "hour": "from the hour that it counts",
    "id_day": "from the day on which it happened",
    "request": "from the request",
    "transaction": "from the transaction",
}
_REGIONS: Mapping[str, str] = {"us": "the United States", "eu": "the European Union"}
_HOLDERS: Mapping[str, str] = {
    "metering": "Metering: which requests were made, and what they used",
    "billing": "Billing: payments, credit and charges",
    "security": "Security: connections and sign-ins",
    "retention": "Directory: accounts, workspaces, members, keys, and your requests",
    "notifications": "Notifications: your address, and the mails sent to it",
    "insights": "Insights: use of the dashboard and the playground",
}

_STYLE = """
:root{color-scheme:light dark;--ink:#1a1d21;--soft:#4a5058;--line:#c9ced6;--paper:#fff;--tint:#f3f5f8}
@media(prefers-color-scheme:dark){:root{--ink:#eceef1;--soft:#b8bec7;--line:#454b54;--paper:#16181c;--tint:#20242a}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:1rem/1.6 system-ui,sans-serif}
main{max-width:46rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.75rem;line-height:1.25;margin:.5rem 0 1rem}
h2{font-size:1.3rem;margin:2.5rem 0 .5rem;padding-top:.5rem;border-top:2px solid var(--line)}
h3{font-size:1.1rem;margin:1.75rem 0 .25rem}
h4{font-size:1rem;margin:1.25rem 0 .25rem}
p,ul,ol,dl{margin:.5rem 0}
a{color:inherit}
code{font:.9em ui-monospace,monospace;overflow-wrap:anywhere}
dl.facts{display:grid;grid-template-columns:max-content 1fr;gap:.25rem 1rem;padding:1rem}
dl.facts{background:var(--tint);border-radius:.5rem}
dl.facts dt{color:var(--soft)}
dl.facts dd{margin:0;overflow-wrap:anywhere}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.95rem}
caption{text-align:left;color:var(--soft);padding:.25rem 0}
th,td{text-align:left;vertical-align:top;padding:.35rem .75rem .35rem 0;border-bottom:1px solid var(--line)}
td.n,th.n{text-align:right}
.note{color:var(--soft)}
@media(max-width:32rem){dl.facts{grid-template-columns:1fr;gap:0}dl.facts dd{margin-bottom:.5rem}}
@media print{body{font-size:10.5pt}main{max-width:none;padding:0}h2,h3,h4{break-after:avoid}tr,dl{break-inside:avoid}}
"""


def page(contents: Contents) -> str:
    """The page, as HTML."""
    said = contents.policy
    held = [source for source in contents.sources if source.told.rows]
    rows = sum(source.told.rows for source in held)
    body = [
        "<h1>A copy of your data</h1>" if contents.rows_asked_for else "<h1>What is held about you</h1>",
        "<p>You asked what this service holds about you. This package is the answer: "
        + (
            "a copy of your data as it was when the copy was made, and this page, which says what each file is, "
            if contents.rows_asked_for
            else "this page says, by category, what is held, "
        )
        + "what the data is used for, how long it is kept, who has received it, and what you can ask for next.</p>",
        _facts(contents, rows, len(held)),
        "<p><strong>Keep this package to yourself.</strong> It is encrypted so that only you can open it; what you have "
        "unpacked is not encrypted any more.</p>",
        "<h2 id='files'>What is in it</h2>",
        *_overview(held, contents.rows_asked_for),
        *(line for holder, group in _by_holder(held) for line in _holder(holder, group, said)),
        *_empty([source for source in contents.sources if not source.told.rows and source.told.left_out is None]),
        "<h2 id='missing'>What is not in it, and why</h2>",
        *_missing(contents.missing),
        "<h2 id='where'>Where your data is, and who receives it</h2>",
        f"<p>Your data is stored and processed in <strong>{escape(_region(said.region))}</strong>.</p>",
        *_recipients(said),
        *_never(said),
        *_disclosed(contents.disclosed),
        *(["<h2 id='read'>How to read the files</h2>", *_reading()] if contents.rows_asked_for else []),
        "<h2 id='rights'>What you can ask for next</h2>",
        *_rights(),
    ]
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        "<meta name='referrer' content='no-referrer'>\n<meta name='robots' content='noindex'>\n"
        f"<title>A copy of your data</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _facts(contents: Contents, rows: int, tables: int) -> str:
    facts = [
        ("Case", f"<code>{escape(contents.case)}</code>"),
        ("Made at", escape(_instant(contents.made_at))),
        ("Period", escape(_span(contents.since, contents.until))),
        ("Holds", f"{_number(rows, 'row')} from {_number(tables, 'table')}"),
        ("Privacy policy", f"version {escape(contents.policy.version)}"),
    ]
    return "<dl class='facts'>" + "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts) + "</dl>"


def _overview(held: Sequence[Source], files: bool) -> Iterator[str]:
    if not held:
        yield "<p>The services hold nothing about you.</p>"
        return
    yield (
        "<div class='wide'><table><caption>All tables that hold something about you</caption><thead><tr>"
        "<th scope='col'>Table</th><th scope='col' class='n'>Rows</th><th scope='col'>Files</th></tr></thead><tbody>"
    )
    for source in held:
        links = ", ".join(
            f"<a href='{escape(path)}'>{kind}</a>"
            for kind, path in zip(("JSON Lines", "CSV", "schema"), source.files, strict=False)
        )
        yield (
            f"<tr><th scope='row'><a href='#{escape(_anchor(source))}'>{escape(source.holder)}: {escape(_title(source))}</a></th>"
            f"<td class='n'>{source.told.rows:,}</td><td>{links}</td></tr>"
        )
    yield "</tbody></table></div>"
    if not files:
        yield (
            "<p>You asked what there is, not for the rows themselves: you get them, too, when you ask for a copy. "
            "<a href='manifest.json'>manifest.json</a> says the same in a form for programs.</p>"
        )
        return
    yield (
        "<p>Each table comes twice, with the same rows: as JSON Lines for programs and as CSV for spreadsheets. "
        "<a href='manifest.json'>manifest.json</a> lists every file with its SHA-256 digest, and all that this page says in "
        "a form for programs.</p>"
    )


def _holder(holder: str, group: Sequence[Source], said: Policy) -> Iterator[str]:
    yield f"<h3>{escape(_HOLDERS.get(holder, holder))}</h3>"
    for source in group:
        title, rows = escape(_title(source).capitalize()), _number(source.told.rows, "row")
        yield f"<h4 id='{escape(_anchor(source))}'>{title} ({rows})</h4>"
        for columns in _alike(source.told.columns):
            first = columns[0]
            words = _CATEGORIES.get(first.category, _Words(first.category, "not stated"))
            names = ", ".join(f"<code>{escape(column.name)}</code>" for column in columns)
            facts = [
                ("What it is", escape(words.what) + f"<br><span class='note'>columns: {names}</span>"),
                ("Used for", escape(_USES.get(first.use, first.use))),
                ("Kept", escape(_period(first, said))),
                ("Legal ground", escape(_GROUNDS.get(first.ground, first.ground))),
                ("Came from", escape(words.origin)),
            ]
            notes = sorted({column.note for column in columns if column.note})
            facts += [("How it is kept", escape("; ".join(notes)))] if notes else []
            yield "<dl class='facts'>" + "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts) + "</dl>"


def _empty(sources: Sequence[Source]) -> Iterator[str]:
    if sources:
        names = ", ".join(f"{escape(source.holder)}: {escape(_title(source))}" for source in sources)
        yield f"<p>Looked into, and nothing about you was there: {names}.</p>"


def _missing(missing: Sequence[Missing]) -> Iterator[str]:
    whys: dict[str, list[str]] = {}
    for gap in missing:
        whys.setdefault(gap.why, []).append(gap.source)
    yield "<ul>"
    for why, sources in whys.items():
        names = ", ".join(f"<code>{escape(source)}</code>" for source in dict.fromkeys(sources))
        yield f"<li>{escape(why)} <span class='note'>({names})</span></li>"
    yield (
        "<li>What was not kept cannot be copied: the texts of your prompts and of their answers, requests of workspaces "
        "whose log retention is set to 0 days, and everything whose time was over when this copy was made.</li>"
        "<li>Secrets are not shown: one-time codes, and values whose key was destroyed, stand empty.</li>"
        "<li>The copy was made while the service went on: what came in meanwhile may be in it or not.</li></ul>"
    )


def _recipients(said: Policy) -> Iterator[str]:
    yield (
        "<div class='wide'><table><caption>Everybody outside of the service who may receive something</caption><thead><tr>"
        "<th scope='col'>Who</th><th scope='col'>What for</th><th scope='col'>What they get</th></tr></thead><tbody>"
    )
    for recipient in said.recipients.values():
        fields = ", ".join(field.replace("_", " ") for field in recipient.fields)
        yield (
            f"<tr><th scope='row'>{escape(recipient.title)}</th><td>{escape(_USES.get(recipient.use, recipient.use))}</td>"
            f"<td>{escape(fields)}</td></tr>"
        )
    yield "</tbody></table></div>"


def _never(said: Policy) -> Iterator[str]:
    if {"sales", "marketing", "train_ai_system"} <= set(said.uses.forbidden):
        yield "<p>Your data is not sold, and is not used for advertising or to train models.</p>"


def _disclosed(disclosed: Sequence[Disclosed]) -> Iterator[str]:
    """Never says that there is nothing: of some disclosures a law forbids to speak."""
    yield "<h3>Disclosures</h3>"
    if not disclosed:
        yield (
            "<p>There is no disclosure of your data, to an authority or to protect rights, property or safety, that we may "
            "tell you of.</p>"
        )
        return
    yield (
        "<div class='wide'><table><caption>Each disclosure that we may tell you of</caption><thead><tr><th scope='col'>When</th>"
        "<th scope='col'>To whom</th><th scope='col'>On what basis</th><th scope='col'>What</th></tr></thead><tbody>"
    )
    for one in disclosed:
        basis = ", ".join(filter(None, (one.basis, one.instrument))).replace("_", " ")
        yield (
            f"<tr><th scope='row'>{escape(one.date[:10])}</th><td>{escape(one.recipient)}</td><td>{escape(basis)}</td>"
            f"<td>{escape(one.scope)}</td></tr>"
        )
    yield "</tbody></table></div>"


def _reading() -> Iterator[str]:
    yield (
        "<ul><li><strong>CSV</strong> opens in any spreadsheet: choose UTF-8 and the comma when it asks. A text that a "
        "spreadsheet could take for a formula has an apostrophe before it, and so has an empty text; an empty cell means "
        "that there is no value.</li>"
        "<li><strong>JSON Lines</strong> has one JSON object on each line, exactly as it is stored. The schema beside it says "
        "what kind of value each column has.</li>"
        "<li>Instants are in UTC. Amounts that end in <code>_pico</code> are millionths of a millionth of a US dollar: "
        "divide by 1,000,000,000,000. <code>hour</code> and <code>day</code> count from the beginning of 1970.</li>"
        "<li>To see that nothing was changed: <code>steward package open FILE --out FOLDER</code> compares each file with the "
        "manifest, and any tool that computes SHA-256 can do the same.</li></ul>"
    )


def _rights() -> Iterator[str]:
    yield (
        "<p>Answer the mail that told you of this package, or ask in your account, and name the case. You can ask us</p>"
        "<ul><li>to <strong>correct</strong> what is wrong,</li><li>to <strong>erase</strong> your data, but for what a law "
        "makes us keep,</li><li>to <strong>restrict</strong> what is done with it,</li>"
        "<li>to stop a use that rests on legitimate interests (<strong>object</strong>), or on your consent "
        "(<strong>withdraw</strong> it),</li>"
        "<li>to <strong>take it elsewhere</strong>: these files are made for programs to read.</li></ul>"
        "<p>Asking costs you nothing and has no consequence for your service. If you think that your data is not handled as "
        "it should be, you can also complain to the data protection authority where you live.</p>"
    )


# --- words -----------------------------------------------------------------------------------------------------------


def _by_holder(sources: Iterable[Source]) -> Iterator[tuple[str, list[Source]]]:
    groups: dict[str, list[Source]] = {}
    for source in sources:
        groups.setdefault(source.holder, []).append(source)
    yield from groups.items()


def _alike(columns: Iterable[ToldColumn]) -> list[list[ToldColumn]]:
    """Columns in groups that have everything but their name and type in common."""
    groups: dict[tuple[object, ...], list[ToldColumn]] = {}
    for column in columns:
        same = (column.category, column.use, column.ground, column.clock_start, column.period, column.days)
        groups.setdefault(same, []).append(column)
    return list(groups.values())


def _period(column: ToldColumn, said: Policy) -> str:
    start = _STARTS.get(column.clock_start, "")
    match column.period:
        case "account_closure":
            return f"while the account lives, and at most {said.closure_cap_days} days {start}"
        case "request_log":
            return f"as long as the workspace's settings say, at most {said.request_log_max_days} days {start}"
        case "usage_rollup":
            return f"{said.rollup_months} months {start}"
        case "billing_record":
            years = sorted(set(said.billing_years.values()))
            return f"as long as tax law wants: {' or '.join(map(str, years))} years {start}"
        case "legal_hold":
            return "until the hold that a law demands is released"
    days = "not stated" if column.days is None else f"{_number(column.days, 'day')} {start}"
    return days.strip()


def _span(since: str | None, until: str | None) -> str:
    if since is None and until is None:
        return "everything that is held"
    return " ".join(filter(None, (since and f"from {since}", until and f"until before {until}")))


def _region(region: str) -> str:
    return _REGIONS.get(region.split("-")[0], f"the region {region}")


def _title(source: Source) -> str:
    return source.table.replace("_", " ")


def _anchor(source: Source) -> str:
    return f"{source.holder}.{source.table}"


def _number(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def _instant(at: datetime) -> str:
    return f"{at.astimezone(UTC):%d %B %Y, %H:%M} UTC"
