"""Whether the books are right, whether that is still being proved, and what is not in them yet."""

from __future__ import annotations

from deploy.observe.rules import Alert, Case, Group, Recording, series, target

_AUDIT = target("audit")
_METERING = target("metering")
_BILLING = target("billing")
_PRICELESS = 'steward_metering_quarantined{reason=~"unknown_model|unknown_price"}'
_FOR_PERSON = 'steward_metering_quarantined{reason!~"unknown_model|unknown_price|original_unknown"}'
_MISSING = 'min_over_time(steward_audit_records{outcome="missing"}[30m])'
_CONFLICTS = "job:steward_audit_conflicts:max"
_SUSPENSE = "job:steward_billing_suspense:max"


def _difference(name: str, reason: str, summary: str, description: str) -> Alert:
    difference = series(_AUDIT, "steward_audit_difference", reason=reason)
    return Alert(
        name,
        "page",
        f'max by (namespace, job) (abs(steward_audit_difference{{reason="{reason}"}})) > LIMIT',
        "0",
        2,
        summary,
        description,
        # less is as wrong as more
        fires=Case({difference: "0 0 -1+0x20"}, 10, _AUDIT),
        quiet=Case({difference: "0+0x20"}, 10),
        past="1",
        near="-1",
    )


GROUP = Group(
    "books",
    (
        Recording(_CONFLICTS, 'max by (namespace, job) (steward_audit_records{outcome="conflicts"})'),
        Recording(_SUSPENSE, 'max by (namespace, job) (steward_billing_waiting_payments{outcome="suspense"})'),
    ),
    (
        _difference(
            "ConservationBroken",
            "records",
            "Records of usage are in no class, or in two",
            "Emitted records differ by {{ $value }} from those that were rated, repeated, quarantined, dead-lettered or erased.",
        ),
        _difference(
            "LedgerOutOfBalance",
            "ledger",
            "The ledger does not sum to zero",
            "The classes of the ledger are off by {{ $value }} pico-dollars in all.",
        ),
        _difference(
            "ChargesDiffer",
            "charges",
            "Charges are not what their quantities cost",
            "What was charged differs by {{ $value }} pico-dollars from what the auditor computes from the same lines.",
        ),
        Alert(
            "AuditFindsWrong",
            "page",
            "max by (namespace, job) (steward_audit_findings) > LIMIT",
            "0",
            2,
            "The proof of the books fails",
            "The latest proof found {{ $value }} things wrong; the log of audit and `steward check` name them.",
            fires=Case({series(_AUDIT, "steward_audit_findings"): "0 0 1+0x20"}, 10, _AUDIT),
            quiet=Case({series(_AUDIT, "steward_audit_findings"): "0+0x20"}, 10),
            past="1",
            near="-1",
        ),
        Alert(
            "AuditStale",
            "page",
            "time() - max by (namespace, job) (steward_audit_last_success_timestamp_seconds) > LIMIT",
            "1800",
            5,
            "The books have not been proved for {{ $value | humanizeDuration }}",
            "No proof has held since. An alert that is quiet because the auditor is dead says nothing.",
            fires=Case({series(_AUDIT, "steward_audit_last_success_timestamp_seconds"): "600+0x90"}, 60, _AUDIT),
            quiet=Case({series(_AUDIT, "steward_audit_last_success_timestamp_seconds"): "-1500+60x90"}, 60),
            past="2700",
            near="1200",
        ),
        Alert(
            "AuditUndetermined",
            "ticket",
            "1 - min by (namespace, job) (steward_audit_determined) > LIMIT",
            "0",
            15,
            "The proof of the books comes to no verdict",
            "For a quarter of an hour no proof could be ended: a database is away, or too much is on its way.",
            fires=Case({series(_AUDIT, "steward_audit_determined"): "1 1 0+0x40"}, 30, _AUDIT),
            quiet=Case({series(_AUDIT, "steward_audit_determined"): "0 0 1+0x40"}, 30),
            past="1",
            near="-1",
        ),
        Alert(
            "SourceEventsMissing",
            "ticket",
            f"max by (namespace, job) ({_MISSING} - ({_MISSING.replace(')', ' offset 1d)')} or 0 * {_MISSING})) > LIMIT",
            "0",
            15,
            "Events that sources have numbered never came",
            "{{ $value }} more than a day ago are missing: they were lost before the mesh, or their sender still has them.",
            # what is only on its way comes within the half hour
            fires=Case({series(_AUDIT, "steward_audit_records", outcome="missing"): "0+0x20 1+0x100"}, 100, _AUDIT),
            quiet=Case(
                {series(_AUDIT, "steward_audit_records", outcome="missing"): "0 9 4 0 8 2 0 5 0+0x15 0 9 4 0+0x80"}, 45
            ),
            past="1",
            near="-1",
        ),
        Alert(
            "EventsConflict",
            "ticket",
            f"{_CONFLICTS} - ({_CONFLICTS} offset 1h or 0 * {_CONFLICTS}) > LIMIT",
            "0",
            0,
            "Sources send the same id with other content",
            "{{ $value }} events in an hour had the id of an earlier one and said something else; the first counts.",
            fires=Case({series(_AUDIT, "steward_audit_records", outcome="conflicts"): "3+0x70 4+0x50"}, 90, _AUDIT),
            quiet=Case({series(_AUDIT, "steward_audit_records", outcome="conflicts"): "3+0x120"}, 90),
            past="1",
            near="-1",
        ),
        Alert(
            "UsageWaitsForPrice",
            "ticket",
            f"sum by (namespace, job) (max by (namespace, job, reason) ({_PRICELESS})) > LIMIT",
            "0",
            240,
            "Usage is not charged: {{ $value }} generations wait for a price",
            "Nobody has stated a price for their model for four hours, or the guard holds the one that was.",
            fires=Case(
                {series(_METERING, "steward_metering_quarantined", reason="unknown_model"): "0 1+0x400"},
                300,
                _METERING,
            ),
            quiet=Case(
                {series(_METERING, "steward_metering_quarantined", reason="unknown_model"): "0 12+0x100 0+0x300"}, 300
            ),
            past="1",
            near="-1",
            step=5,
        ),
        Alert(
            "UsageNeedsPerson",
            "ticket",
            f"sum by (namespace, job, reason) (max by (namespace, job, reason) ({_FOR_PERSON})) > LIMIT",
            "0",
            60,
            "{{ $value }} generations wait for a person ({{ $labels.reason }})",
            "No price and no later event will release them.",
            fires=Case(
                {series(_METERING, "steward_metering_quarantined", reason="stale"): "0 1+0x100"},
                90,
                _METERING | {"reason": "stale"},
            ),
            quiet=Case(
                {
                    series(_METERING, "steward_metering_quarantined", reason="stale"): "0+0x100",
                    series(_METERING, "steward_metering_quarantined", reason="original_unknown"): "5+0x100",
                },
                90,
            ),
            past="1",
            near="-1",
            step=5,
        ),
        Alert(
            "ProviderCostsDiffer",
            "ticket",
            "sum by (namespace, job, provider) (\n"
            '  max by (namespace, job, provider, reason) (abs(steward_metering_cost_drift_pico{reason="open"})))\n'
            "/ sum by (namespace, job, provider) (\n"
            "  max by (namespace, job, provider, reason) (steward_metering_cost_reported_pico)) > LIMIT",
            "0.01",
            60,
            "What {{ $labels.provider }} charges is not what we rated",
            "Of what {{ $labels.provider }} says it charged, {{ $value | humanizePercentage }} differ without an explanation.",
            fires=Case(
                {
                    series(_METERING, "steward_metering_cost_drift_pico", provider="p", reason="open"): "-1.3e9+0x120",
                    series(_METERING, "steward_metering_cost_reported_pico", provider="p", reason="open"): "2e10+0x120",
                    series(
                        _METERING, "steward_metering_cost_reported_pico", provider="p", reason="equal"
                    ): "8e10+0x120",
                },
                90,
                _METERING | {"provider": "p"},
            ),
            quiet=Case(
                {
                    series(_METERING, "steward_metering_cost_drift_pico", provider="p", reason="open"): "8e8+0x120",
                    series(
                        _METERING, "steward_metering_cost_drift_pico", provider="p", reason="byok_fee"
                    ): "5e10+0x120",
                    series(
                        _METERING, "steward_metering_cost_reported_pico", provider="p", reason="equal"
                    ): "1e11+0x120",
                },
                90,
            ),
            past="0.015",
            near="0.007",
            step=5,
        ),
        Alert(
            "RollupsBehind",
            "ticket",
            "max by (namespace, job) (steward_metering_pending_rollups) > LIMIT",
            "1000",
            15,
            "Sums of usage are behind",
            "{{ $value }} batches are not in the rollups yet: usage by model and key is shown too low; charges are right.",
            fires=Case({series(_METERING, "steward_metering_pending_rollups"): "0+100x60"}, 28, _METERING),
            quiet=Case({series(_METERING, "steward_metering_pending_rollups"): "800+0x60"}, 40),
            past="1500",
            near="700",
        ),
        Alert(
            "PaymentsInSuspense",
            "ticket",
            f"{_SUSPENSE} - ({_SUSPENSE} offset 1d or 0 * {_SUSPENSE}) > LIMIT",
            "0",
            0,
            "Money came that nobody can match",
            "{{ $value }} refunds or disputes more than a day ago are in suspense: their purchase did not come within 24 h.",
            fires=Case(
                {series(_BILLING, "steward_billing_waiting_payments", outcome="suspense"): "0+0x30 1+0x60"},
                60,
                _BILLING,
            ),
            quiet=Case({series(_BILLING, "steward_billing_waiting_payments", outcome="suspense"): "0+0x90"}, 60),
            past="1",
            near="-1",
        ),
    ),
)
