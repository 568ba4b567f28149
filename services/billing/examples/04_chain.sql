-- Each transaction has sealed its journals with one block, and each block names the hash of the one before.
SELECT c.block, c.journals, left(encode(c.prev, 'hex'), 12) AS prev, left(encode(c.hash, 'hex'), 12) AS hash,
       string_agg(j.kind, ', ' ORDER BY j.id) AS booked
FROM chain c
JOIN journal j ON j.class = c.class AND j.block = c.block
WHERE c.class = 'US' AND j.booking_year = 2026
GROUP BY c.class, c.block
ORDER BY c.block;
