-- The books. Amounts are pico-US-dollars; in entries a debit is positive, a credit negative.
-- The ledger (journal, entry, charge_line) is partitioned by legal class and booking year, and it only grows.

-- --- who pays ---------------------------------------------------------------------------------------------------

-- The only place that leads from a workspace to its number in the ledger; erasing a row of it erases the way.
CREATE TABLE workspace_ref (
    workspace text   PRIMARY KEY,
    id        bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    account   text   NOT NULL,
    class     text   NOT NULL CHECK (class IN ('US', 'EU', 'OTHER'))
);

CREATE TABLE ledger_account (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    class        text   NOT NULL CHECK (class IN ('US', 'EU', 'OTHER')),
    kind         text   NOT NULL CHECK (kind IN ('purchased', 'granted', 'held', 'receivable', 'revenue',
                     'payment_clearing', 'fees', 'breakage', 'promotions', 'suspense', 'suspense_erased', 'opening')),
    workspace_id bigint,
    -- A workspace has its credit and its debt; everything else is the house's, once per class.
    CHECK ((kind IN ('purchased', 'granted', 'held', 'receivable')) = (workspace_id IS NOT NULL)),
    UNIQUE NULLS NOT DISTINCT (workspace_id, class, kind)
);

INSERT INTO ledger_account (class, kind)
SELECT class, kind
FROM unnest(ARRAY['US', 'EU', 'OTHER']) AS class,
     unnest(ARRAY['revenue', 'payment_clearing', 'fees', 'breakage', 'promotions', 'suspense', 'suspense_erased',
                  'opening']) AS kind
ORDER BY class, kind;

-- What a workspace has: a cache of its entries, rebuildable by replay. Its row is the workspace's lock.
CREATE TABLE balance (
    workspace_id       bigint  PRIMARY KEY,
    version            bigint  NOT NULL CHECK (version >= 0),
    purchased_pico     numeric NOT NULL CHECK (purchased_pico >= 0),
    granted_pico       numeric NOT NULL CHECK (granted_pico >= 0),
    receivable_pico    numeric NOT NULL CHECK (receivable_pico >= 0),
    changed_at         timestamptz,
    class              text    NOT NULL CHECK (class IN ('US', 'EU', 'OTHER')),
    class_stated       boolean NOT NULL,    -- a payment has named the jurisdiction
    purchased_account  bigint  NOT NULL,
    granted_account    bigint  NOT NULL,
    receivable_account bigint  NOT NULL,
    erased             boolean NOT NULL DEFAULT false   -- no name leads here any more, whatever a snapshot still shows
) WITH (fillfactor = 60);

-- --- the ledger -------------------------------------------------------------------------------------------------

CREATE SEQUENCE journal_id;

CREATE TABLE journal (
    id             bigint NOT NULL,
    class          text   NOT NULL,
    booking_year   int    NOT NULL,
    cause          text   NOT NULL,
    kind           text   NOT NULL CHECK (kind IN ('usage', 'purchase', 'refund', 'dispute', 'dispute_won', 'dispute_lost',
                       'grant', 'grant_expiry', 'opening', 'suspense', 'match', 'class_left', 'class_entered', 'erasure')),
    workspace_id   bigint,                  -- null: of somebody who is erased, and nobody knows any more who
    period         text   NOT NULL CHECK (length(period) = 7),
    booked_at      timestamptz NOT NULL,
    event_at       timestamptz NOT NULL,
    adjusts_period text   CHECK (adjusts_period IS NULL OR (adjusts_period = period AND kind = 'usage')),
    lines_digest   bytea  CHECK (length(lines_digest) = 32),
    block          bigint NOT NULL,
    CHECK ((kind = 'usage') = (lines_digest IS NOT NULL))
) PARTITION BY LIST (class);

CREATE TABLE entry (
    journal      bigint  NOT NULL,
    class        text    NOT NULL,
    booking_year int     NOT NULL,
    account      bigint  NOT NULL,
    amount_pico  numeric NOT NULL CHECK (amount_pico <> 0 AND scale(amount_pico) = 0)
) PARTITION BY LIST (class);

CREATE TABLE charge_line (
    record        uuid   NOT NULL,
    line          int    NOT NULL,
    hour          int    NOT NULL,
    workspace_id  bigint,
    journal       bigint NOT NULL,
    amount_pico   bigint NOT NULL,          -- what was charged; for byok the fee
    list_pico     bigint NOT NULL,          -- byok: the list price; else the amount
    booking_year  int    NOT NULL,
    class         text   NOT NULL,
    price_version text   NOT NULL,
    tier          text   NOT NULL,
    terms         text   NOT NULL CHECK (terms IN ('list', 'sharing', 'byok')),
    quantities    json   NOT NULL,
    CHECK (terms = 'byok' OR amount_pico = list_pico)
) PARTITION BY LIST (class);
-- For audit, which follows the chain block by block: journals are numbered in time order, and so their lines lie. A
-- unique key over (record, line) would cost as much as the lines.
CREATE INDEX charge_line_journal ON charge_line USING brin (journal) WITH (autosummarize = on);

-- Rated records whose lines are booked: a record is booked at once, by one transaction, or never. It leads to its lines:
-- their journals are among those of its transaction.
CREATE TABLE charged_record (
    record        uuid   PRIMARY KEY,
    booking_year  int    NOT NULL,
    first_journal bigint NOT NULL,
    last_journal  bigint NOT NULL CHECK (last_journal >= first_journal)
);

-- What is no usage is unique by cause, over all classes and years, for as long as its year's books are kept.
CREATE TABLE journal_cause (
    cause        text   PRIMARY KEY,
    journal      bigint NOT NULL,
    digest       bytea  NOT NULL,           -- of the content: a repeat, or another content under the same cause?
    class        text   NOT NULL,
    booking_year int    NOT NULL
);

-- One block per transaction and class: the hash over its journals, and over the hash of the block before.
CREATE TABLE chain (
    class     text   NOT NULL,
    block     bigint NOT NULL CHECK (block > 0),
    prev      bytea  NOT NULL CHECK (length(prev) = 32),
    hash      bytea  NOT NULL CHECK (length(hash) = 32),
    journals  int    NOT NULL CHECK (journals > 0),
    booked_at timestamptz NOT NULL,
    PRIMARY KEY (class, block),
    UNIQUE (class, prev)
);

-- The row that a transaction locks last. A cache of the newest block of each chain.
CREATE TABLE chain_head (
    class text   PRIMARY KEY,
    block bigint NOT NULL,
    hash  bytea  NOT NULL
) WITH (fillfactor = 20);
INSERT INTO chain_head (class, block, hash)
SELECT class, 0, decode(repeat('00', 32), 'hex') FROM unnest(ARRAY['US', 'EU', 'OTHER']) AS class;

-- Where a class's books begin: all that was booked up to the end of a year has been dropped, since its time was over.
-- Written by the owner alone, before anything is dropped. The newest row of a class counts; the older ones lead to it.
CREATE TABLE checkpoint (
    class          text        NOT NULL CHECK (class IN ('US', 'EU', 'OTHER')),
    through_year   int         NOT NULL,
    block          bigint      NOT NULL CHECK (block >= 0),   -- the newest block of these years, or 0; `chain` keeps it
    hash           bytea       NOT NULL CHECK (length(hash) = 32),
    ahead          int         NOT NULL CHECK (ahead >= 0),   -- journals of later years in blocks up to this one: clocks differ
    journals       bigint      NOT NULL,                      -- of all years up to this one, as the next two
    lines          bigint      NOT NULL,
    charged_pico   numeric     NOT NULL,
    prev           bytea       NOT NULL CHECK (length(prev) = 32),
    digest         bytea       NOT NULL CHECK (length(digest) = 32),  -- of this row, of `carried`, and of the row before
    made_at        timestamptz NOT NULL,
    policy_version text        NOT NULL,
    PRIMARY KEY (class, through_year)
);

-- What the dropped entries of each ledger account sum to; those of workspaces that nobody knows any more are one sum.
CREATE TABLE carried (
    class       text    NOT NULL,
    account     bigint  NOT NULL,
    amount_pico numeric NOT NULL CHECK (amount_pico <> 0 AND scale(amount_pico) = 0),
    PRIMARY KEY (class, account)
);

-- What the dropped lines with customers' own keys sum to, over all customers of a class.
CREATE TABLE carried_byok (
    class     text    NOT NULL,
    month     text    NOT NULL,
    list_pico numeric NOT NULL,
    fee_pico  numeric NOT NULL,
    PRIMARY KEY (class, month)
);

-- Whether the books of a year are gone by right: of one class, or (null) of all.
CREATE FUNCTION billing_year_is_over(legal_class text, year int) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT count(DISTINCT class) = CASE WHEN legal_class IS NULL THEN 3 ELSE 1 END FROM checkpoint
    WHERE through_year >= year AND (legal_class IS NULL OR class = legal_class)
$$;

CREATE FUNCTION billing_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- What makes a booking unique goes with the booking.
    IF TG_OP = 'DELETE' AND TG_TABLE_NAME = 'journal_cause' THEN
        IF billing_year_is_over(OLD.class, OLD.booking_year) THEN
            RETURN OLD;
        END IF;
    ELSIF TG_OP = 'DELETE' AND TG_TABLE_NAME = 'charged_record' THEN
        IF billing_year_is_over(NULL, OLD.booking_year) THEN
            RETURN OLD;
        END IF;
    END IF;
    RAISE EXCEPTION 'the books only grow: % on % is refused', TG_OP, TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END $$;

CREATE FUNCTION billing_check_sum() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM added GROUP BY class, journal HAVING sum(amount_pico) <> 0) THEN
        RAISE EXCEPTION 'the entries of a journal do not sum to zero' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;

-- What may only grow, is refused to change by two locks: no right for the service's role, and a trigger for all others.
-- Dropping the partition of a year whose time is over passes both.
CREATE FUNCTION billing_append_only(relation text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'steward_billing_app') THEN
        EXECUTE format('REVOKE UPDATE, DELETE, TRUNCATE ON %I FROM steward_billing_app', relation);
    END IF;
END $$;

-- The ledger's partitions of one booking year. To be called by the owner before the year begins.
CREATE FUNCTION billing_make_year(year int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    part text;
    legal_class text;
    key text;
    root text;
BEGIN
    FOREACH legal_class IN ARRAY ARRAY['US', 'EU', 'OTHER'] LOOP
        FOR root, key IN VALUES ('journal', 'id'), ('entry', 'journal, account'), ('charge_line', NULL) LOOP
            part := format('%s_%s', root, lower(legal_class));
            IF to_regclass(part) IS NULL THEN
                EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES IN (%L) PARTITION BY LIST (booking_year)',
                               part, root, legal_class);
                PERFORM billing_append_only(part);
            END IF;
            root := part;
            part := format('%s_%s', root, year);
            IF to_regclass(part) IS NULL THEN
                EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES IN (%s)', part, root, year);
                -- Class and year are the same all through a partition, so its key needs neither.
                IF key IS NOT NULL THEN
                    EXECUTE format('CREATE UNIQUE INDEX %I ON %I (%s)', part || '_key', part, key);
                END IF;
                PERFORM billing_append_only(part);
                IF key = 'journal, account' THEN
                    -- The trigger on `entry` itself does not see what is written to a partition directly.
                    EXECUTE format('CREATE TRIGGER sums_to_zero AFTER INSERT ON %I REFERENCING NEW TABLE AS added '
                                   'FOR EACH STATEMENT EXECUTE FUNCTION billing_check_sum()', part);
                END IF;
            END IF;
        END LOOP;
    END LOOP;
END $$;

DO $$
DECLARE
    root text;
BEGIN
    FOREACH root IN ARRAY ARRAY['journal', 'entry', 'charge_line', 'charged_record', 'journal_cause', 'chain',
                              'checkpoint'] LOOP
        PERFORM billing_append_only(root);
        -- For partitioned tables each partition, of now and of later, gets a copy of the row trigger.
        EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON %I FOR EACH ROW '
                       'EXECUTE FUNCTION billing_refuse_change()', root);
        EXECUTE format('CREATE TRIGGER no_truncate BEFORE TRUNCATE ON %I FOR EACH STATEMENT '
                       'EXECUTE FUNCTION billing_refuse_change()', root);
    END LOOP;
    -- No service says where its own books begin.
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'steward_billing_app') THEN
        REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON checkpoint, carried, carried_byok FROM steward_billing_app;
    END IF;
    FOR year IN 2025..2034 LOOP
        PERFORM billing_make_year(year);
    END LOOP;
END $$;

CREATE TRIGGER sums_to_zero AFTER INSERT ON entry REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION billing_check_sum();

-- --- usage ------------------------------------------------------------------------------------------------------

-- Which rated lines are booked, for W. The digest is 16 bits of the rated amount.
CREATE TABLE line_seen (
    line_id bytea    PRIMARY KEY,           -- 6 bytes of time, 10 of a keyed hash
    digest  smallint NOT NULL
) PARTITION BY RANGE (line_id);

-- The same for lines older than W, which a person has released; forgotten W after they came.
CREATE TABLE line_late (
    line_id bytea    PRIMARY KEY,
    digest  smallint NOT NULL,
    seen_on date     NOT NULL
);
CREATE INDEX line_late_seen_on ON line_late (seen_on);

-- Usage with the customer's own key in a month: what the fee is computed from.
CREATE TABLE byok_month (
    account   text    NOT NULL,
    month     text    NOT NULL,
    list_pico numeric NOT NULL,
    PRIMARY KEY (account, month)
) WITH (fillfactor = 60);

-- Months of accounts that are erased, so that the fees charged can still be proved. A row is one account's month, or
-- what came of one after it was erased; nothing says which rows belong together.
CREATE TABLE byok_erased (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    month     text    NOT NULL,
    list_pico numeric NOT NULL
);
SELECT billing_append_only('byok_erased');

CREATE TABLE period (
    class     text NOT NULL,
    period    text NOT NULL CHECK (length(period) = 7),
    closes_at timestamptz NOT NULL,
    closed_at timestamptz CHECK (closed_at >= closes_at),
    PRIMARY KEY (class, period)
);

CREATE TABLE period_total (
    class         text    NOT NULL,
    period        text    NOT NULL,
    workspace_id  bigint  NOT NULL,         -- 0: usage of erased workspaces
    charged_pico  numeric NOT NULL,         -- usage of the period, booked before it closed
    adjusted_pico numeric NOT NULL,         -- usage of closed periods, booked in this month
    journals      bigint  NOT NULL,
    PRIMARY KEY (class, period, workspace_id)
);
SELECT billing_append_only('period_total');

-- --- payments, grants, notes ------------------------------------------------------------------------------------

CREATE TABLE purchase (
    payment      text    PRIMARY KEY,
    workspace_id bigint  NOT NULL,          -- 0 and below: it came after the payer's erasure, and is nobody's
    credit_pico  numeric NOT NULL CHECK (credit_pico > 0),
    fee_pico     numeric NOT NULL CHECK (fee_pico >= 0),
    taken_pico   numeric NOT NULL CHECK (taken_pico BETWEEN 0 AND credit_pico),   -- by refunds, and disputes not won
    settled_at   timestamptz NOT NULL
);

CREATE TABLE dispute (
    dispute       text    PRIMARY KEY,
    payment       text    NOT NULL,
    workspace_id  bigint  NOT NULL,
    taken_pico    numeric NOT NULL CHECK (taken_pico >= 0),       -- borne by the workspace
    suspense_pico numeric NOT NULL CHECK (suspense_pico >= 0),    -- borne by nobody yet
    state         text    NOT NULL CHECK (state IN ('open', 'won', 'lost'))
);
CREATE INDEX dispute_payment ON dispute (payment);

-- Refunds and disputes that came before what they are about.
CREATE TABLE waiting_payment (
    cause        text    PRIMARY KEY,
    kind         text    NOT NULL CHECK (kind IN ('refund', 'dispute', 'dispute_closed')),
    payment      text    NOT NULL,
    dispute      text,
    workspace_id bigint  NOT NULL,
    credit_pico  numeric,
    outcome      text    CHECK (outcome IN ('won', 'lost')),
    digest       bytea   NOT NULL,
    event_at     timestamptz NOT NULL,
    arrived_at   timestamptz NOT NULL,
    position     int     NOT NULL,          -- order of arrival within one transaction
    state        text    NOT NULL CHECK (state IN ('waiting', 'suspense'))
);
CREATE INDEX waiting_payment_payment ON waiting_payment (payment);
CREATE INDEX waiting_payment_due ON waiting_payment (arrived_at) WHERE state = 'waiting';

CREATE TABLE credit_grant (
    grant_id       text    PRIMARY KEY,
    workspace_id   bigint  NOT NULL,
    credit_pico    numeric NOT NULL CHECK (credit_pico > 0),   -- what was left after it had paid a debt
    remaining_pico numeric NOT NULL CHECK (remaining_pico BETWEEN 0 AND credit_pico),
    priority       int     NOT NULL,
    expires_at     timestamptz,
    granted_at     timestamptz NOT NULL
);
CREATE INDEX credit_grant_open ON credit_grant (workspace_id) WHERE remaining_pico > 0;
CREATE INDEX credit_grant_due ON credit_grant (expires_at) WHERE remaining_pico > 0 AND expires_at IS NOT NULL;

-- Beside the ledger, so that a note can be erased and the books stay.
CREATE TABLE note (
    note         text   PRIMARY KEY,
    workspace_id bigint NOT NULL,
    text         text   NOT NULL,           -- sealed
    added_at     timestamptz NOT NULL
);
CREATE INDEX note_workspace ON note (workspace_id);

-- What may be charged again. The processor's token is sealed under the workspace's key, and erased with it.
CREATE TABLE payment_method (
    workspace text        NOT NULL,
    method    text        NOT NULL,
    account   text        NOT NULL,
    token     text        NOT NULL,         -- sealed
    saved_at  timestamptz NOT NULL,
    PRIMARY KEY (workspace, method)
);

-- How far the round of re-published balances got.
CREATE TABLE balance_round (
    one        boolean PRIMARY KEY DEFAULT true CHECK (one),
    position   bigint NOT NULL,
    started_at timestamptz NOT NULL
);

-- Workspaces that were just erased, until the null record is on its way that lets compaction end their key.
CREATE TABLE erased_workspace (
    workspace  text PRIMARY KEY,
    published  boolean     NOT NULL,        -- there is a balance of it to end
    erased_at  timestamptz NOT NULL,
    kept_until timestamptz NOT NULL         -- how long the law keeps its books: for the receipt
);
CREATE INDEX erased_workspace_at ON erased_workspace (erased_at);
