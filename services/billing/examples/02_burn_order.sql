-- Granted credit burns first, the $1 with the lower priority number before the $2. So of the $4, $1.50 was still
-- granted, and $2.50 came out of what was bought. A debit is positive, a credit negative; each journal sums to zero.
SELECT j.id AS journal, j.kind AS booked, a.kind AS account, e.amount_pico
FROM journal j
JOIN entry e ON e.class = j.class AND e.booking_year = j.booking_year AND e.journal = j.id
JOIN ledger_account a ON a.id = e.account
WHERE j.class = 'US' AND j.booking_year = 2026
ORDER BY j.id, e.account;
