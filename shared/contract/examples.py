"""A valid instance of every event, so that an outsider can build one: part of the schemas, and proved by a test."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from . import events as e
from .base import Event

_TIME = "2026-11-24T21:00:00.250Z"
_PAYER = {"account": "acc-71", "workspace": "ws-204"}
_SEALED = "sealed:v1:ingress-2026-11-24:" + "q" * 43 + ":" + "Zm9yIG9wZXJhdG9ycyBvbmx5LCBzZWFsZWQ"

_CASE = "019ab7d4-1e5a-7f00-8a1b-2c3d4e5f6a7b"
_HASH = "9f86d081884c7d659a2feaa0c55ad015"

_USAGE: dict[str, Any] = {
    **_PAYER,
    "key": "key-9",
    "generation_ref": "gen-1764018000-b3",
    "model": "claude-sonnet-4-5",
    "provider": "anthropic",
    "tier": "standard",
    "outcome": "completed",
    "finish_reason": "stop",
    "byok": False,
    "data_sharing": False,
    "log_retention_days": 30,
    "input_tokens": 1812,
    "output_tokens": 240,
    "tokens": {"input": 612, "cache_read": 1200, "output": 180, "reasoning": 60},
    "counts": {"web_search": 1},
    "cost_reported_pico": "15796000000",
}

_DATA: Mapping[type[Event], dict[str, Any]] = {
    e.GenerationCompleted: _USAGE,
    e.UsageCorrected: {
        **_USAGE,
        "output_tokens": 200,
        "tokens": {"input": 612, "cache_read": 1200, "output": 200},
        "original": "019ab7d4-1e5a-7c3e-9d52-5b6a0f1c2d3e",
        "reason": "wrong_usage",
    },
    e.PricePublished: {
        "provider": "anthropic",
        "model": "claude-sonnet-4-5",
        "tier": "standard",
        "prices": {
            "input": "0.000003",
            "cache_read": "0.0000003",
            "output": "0.000015",
            "reasoning": "0.000015",
            "web_search": "0.01",
        },
        "not_billed": ["request"],
        "context_tiers": [
            {"above_input_tokens": 200000, "prices": {"input": "0.000006", "output": "0.0000225"}},
        ],
        "valid_from": "2026-11-01T00:00:00Z",
        "source": "price-desk",
    },
    e.PricesImported: {
        "batch": "litellm-2026-11-24",
        "lists": [
            {
                "provider": "groq",
                "model": "whisper-large-v3",
                "prices": {"second": "0.111"},
                "per": {"second": 3600},
                "valid_from": "2026-11-24T00:00:00Z",
                "source": "litellm",
            },
        ],
    },
    e.PaymentSettled: {
        **_PAYER,
        "payment": "pay-5512",
        "credit_pico": "25000000000000",
        "method": "card-3",
        "jurisdiction": "US",
    },
    e.PaymentRefunded: {**_PAYER, "refund": "re-18", "payment": "pay-5512", "credit_pico": "5000000000000"},
    e.PaymentDisputed: {**_PAYER, "dispute": "dp-4", "payment": "pay-5512", "credit_pico": "25000000000000"},
    e.DisputeClosed: {**_PAYER, "dispute": "dp-4", "payment": "pay-5512", "outcome": "won"},
    e.CreditGranted: {
        **_PAYER,
        "grant": "welcome-204",
        "credit_pico": "1000000000000",
        "expires_at": "2027-02-01T00:00:00Z",
        "priority": 10,
    },
    e.BalanceOpened: {**_PAYER, "credit_pico": "-120000000000", "jurisdiction": "US"},
    e.NoteAdded: {**_PAYER, "note": "note-2", "text": _SEALED},
    e.PaymentMethodSaved: {**_PAYER, "method": "card-3", "token": _SEALED},
    e.UsageRated: {
        "units": [
            {
                **_PAYER,
                "lines": [
                    [
                        "019ab7d41e5a4f0d2c9b8a7766554433",
                        489957,
                        "pv_3f9a0c1d2e4b",
                        "standard",
                        "list",
                        {"input": 612, "cache_read": 1200, "output": 180, "reasoning": 60},
                        "5796000000",
                    ]
                ],
            }
        ]
    },
    e.OperatorCommand: {
        "service": "metering",
        "action": "release_quarantine",
        "target": "17",
        "actor": "op-ines",
        "ticket": "OPS-381",
    },
    e.BalanceChanged: {
        "workspace": "ws-204",
        "version": 12,
        "balance_pico": "24400000000000",
        "purchased_pico": "23400000000000",
        "granted_pico": "1000000000000",
        "receivable_pico": "0",
    },
    e.AccountOpened: {"account": "acc-71", "address": _SEALED, "name": _SEALED, "jurisdiction": "US"},
    e.AccountClosed: {"account": "acc-71"},
    e.WorkspaceCreated: {**_PAYER, "administrator": "mem-5"},
    e.SettingsStated: {
        **_PAYER,
        "version": 3,
        "log_retention_days": 90,
        "activity_opt_out": False,
        "actor": "mem-5",
        "role": "administrator",
    },
    e.MemberRestricted: {"member": "mem-6", "version": 1, "log_retention_days": 0, "activity_opt_out": True},
    e.MemberAdded: {**_PAYER, "member": "mem-6", "role": "member"},
    e.MemberRemoved: {**_PAYER, "member": "mem-6"},
    e.KeyCreated: {**_PAYER, "key": "key-9", "member": "mem-5", "name": _SEALED},
    e.KeyRevoked: {**_PAYER, "key": "key-9"},
    e.AccessRecorded: {
        **_PAYER,
        "member": "mem-5",
        "session": "s-3f9a0c1d2e4b",
        "kind": "sign_in",
        "outcome": "ok",
        "ip": _SEALED,
        "agent": "browser",
    },
    e.ActivityRecorded: {
        **_PAYER,
        "member": "mem-5",
        "surface": "playground",
        "action": "run",
        "model": "claude-sonnet-4-5",
    },
    e.PrivacyRequested: {"kind": "erasure", "scope": "account", "account": "acc-71", "target": "acc-71"},
    e.PrivacyConfirmed: {
        "case": _CASE,
        "account": "acc-71",
        "code": "7KQ2M9XA",
        "successors": {"ws-204": "mem-6"},
    },
    e.PrivacyWithdrawn: {"case": _CASE, "account": "acc-71"},
    e.SupportMailReceived: {
        "mail": "mail-2026-1183",
        "account": "acc-71",
        "subject_line": _SEALED,
        "sender": _SEALED,
    },
    e.SubjectErased: {"hash": _HASH, "kind": "workspace", "case": _CASE, "at": _TIME},
    e.PrivacyOrdered: {
        "case": _CASE,
        "epoch": 1,
        "action": "erase",
        "holders": ["billing"],
        "scope": "account",
        "sealed": "v1:case-1:Zm9yIGhvbGRlcnMgb25seQ",
        "confirmed_at": _TIME,
        "after": {"mesh.usage-rated": {"0": 18, "3": 211}},
    },
    e.PrivacyDone: {
        "case": _CASE,
        "epoch": 1,
        "holder": "metering",
        "action": "erase",
        "treated": [
            {
                "table": "request_log",
                "action": "delete_row",
                "columns": ["account", "generation_id", "workspace"],
                "rows": 1240,
            },
        ],
        "offsets": {"mesh.usage-rated": {"0": 18, "3": 211}},
        "map_version": "0123456789abcdef",
        "code_version": "0.1.0",
    },
    e.PrivacyScanned: {
        "case": _CASE,
        "epoch": 1,
        "action": "probe",
        "stores": [
            {"holder": "metering", "store": "request_log", "verdict": "clean"},
            {
                "holder": "billing",
                "store": "charge_line",
                "verdict": "retained",
                "count": 1240,
                "ground": "legal_obligation",
                "not_after": "2034-01-01T00:00:00Z",
            },
        ],
    },
    e.SettingsChanged: {
        **_PAYER,
        "version": 3,
        "log_retention_days": 90,
        "activity_opt_out": False,
        "changed_at": _TIME,
    },
    e.KeySettingsChanged: {
        "key": "key-9",
        "account": "acc-71",
        "version": 1,
        "log_retention_days": 0,
        "changed_at": _TIME,
    },
    e.MemberSettingsChanged: {"member": "mem-6", "version": 1, "activity_opt_out": True, "changed_at": _TIME},
    e.KeyRefused: {"key": "key-9", "refused": True, "since": _TIME},
    e.MessageRequested: {
        "cause": "requested-019ab7d4",
        "template": "erasure_requested",
        "account": "acc-71",
        "case": _CASE,
        "proof": {"request": _CASE, "until": "2026-12-01T21:00:00.250Z"},
        "facts": {"scope": "account"},
    },
    e.MessageSettled: {"cause": "requested-019ab7d4", "case": _CASE, "outcome": "accepted", "at": _TIME},
    e.ProofJudged: {
        "case": _CASE,
        "account": "acc-71",
        "right": True,
        "of": "account",
        "successors": {"ws-204": "mem-6"},
    },
    e.AccountBarred: {"account": "acc-71"},
    e.CaseChanged: {
        "subject_request_id": _CASE,
        "version": 2,
        "subject_request_type": "access",
        "regulation": "ccpa",
        "account": "acc-71",
        "status": "in_progress",
        "received_time": _TIME,
        "expected_completion_time": "2026-11-27T08:00:00Z",
    },
}

# What the gateway emits names the emitting instance and counts; the mesh's own events have a cause instead.
_SOURCES: Mapping[type[Event], str] = {
    e.UsageRated: "metering",
    e.BalanceChanged: "billing",
    e.OperatorCommand: "operator",
    e.SubjectErased: "retention",
    e.PrivacyOrdered: "retention",
    e.PrivacyDone: "metering",
    e.PrivacyScanned: "audit",
    e.SettingsChanged: "retention",
    e.KeySettingsChanged: "retention",
    e.MemberSettingsChanged: "retention",
    e.KeyRefused: "retention",
    e.MessageRequested: "retention",
    e.MessageSettled: "notifications",
    e.ProofJudged: "notifications",
    e.AccountBarred: "notifications",
    e.CaseChanged: "retention",
}
_SUBJECTS: Mapping[type[Event], str] = {
    e.AccountOpened: "acc-71",
    e.PrivacyRequested: "acc-71",
    e.PrivacyConfirmed: "acc-71",
    e.PrivacyWithdrawn: "acc-71",
    e.SubjectErased: _HASH,
    e.PrivacyOrdered: _CASE,
    e.PrivacyDone: _CASE,
    e.PrivacyScanned: _CASE,
    e.MessageRequested: _CASE,
    e.MessageSettled: _CASE,
    e.ProofJudged: _CASE,
    e.AccountBarred: "acc-71",
    e.MemberRestricted: "mem-6",
    e.KeySettingsChanged: "key-9",
    e.MemberSettingsChanged: "mem-6",
    e.CaseChanged: _CASE,
    e.SupportMailReceived: "mail-2026-1183",
    e.PricePublished: "prices",
    e.PricesImported: "prices",
    e.UsageRated: "metering",
    e.OperatorCommand: "metering",
}


def example(model: type[Event]) -> dict[str, Any]:
    """A valid event of the type, as a JSON document of its own. Raises KeyError for a type that has no example yet."""
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": "019ab7d4-1e5a-7f00-8a1b-2c3d4e5f6a7b",
        "source": _SOURCES.get(model, "gateway-eu-1"),
        "type": model.TYPE,
        "subject": _SUBJECTS.get(model, "ws-204"),
        "time": _TIME,
        "datacontenttype": "application/json",
        "data": deepcopy(_DATA[model]),
    }
    if model not in _SOURCES:
        event["sequence"] = "48211"
    return event
