-- A workspace buys $10 of credit and is granted $2 and $1; it uses $1.50, then $4.
-- What it has is the sum of its entries: nothing else has to be believed.
SELECT r.workspace, a.kind, -sum(e.amount_pico) AS has_pico
FROM entry e
JOIN ledger_account a ON a.id = e.account
JOIN workspace_ref r ON r.id = a.workspace_id
WHERE e.class = 'US' AND e.booking_year = 2026
GROUP BY r.workspace, a.kind
ORDER BY r.workspace, a.kind;
