-- $9 of the purchase are refunded, $7.50 of it was left: the rest is a debt, which the next credit pays first.
-- The fee (5.5 %, at least $0.80) stays.
SELECT a.kind AS account, sum(e.amount_pico) AS amount_pico
FROM journal j
JOIN entry e ON e.class = j.class AND e.booking_year = j.booking_year AND e.journal = j.id
JOIN ledger_account a ON a.id = e.account
WHERE j.class = 'US' AND j.booking_year = 2026 AND j.kind IN ('purchase', 'refund')
GROUP BY a.kind
ORDER BY a.kind;
