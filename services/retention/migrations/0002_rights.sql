-- Everything else that people may ask for: the same cases, with what identifies a wish, who has proved what, and the answer.

ALTER TABLE account ADD COLUMN name text;                        -- sealed under the account's key
ALTER TABLE account ADD COLUMN sale_opt_out_at timestamptz;      -- nothing is sold; since when this account has said so

ALTER TABLE privacy_case
    DROP CONSTRAINT privacy_case_kind_check,
    DROP CONSTRAINT privacy_case_channel_check,
    DROP CONSTRAINT privacy_case_state_check,
    DROP CONSTRAINT privacy_case_check1,
    DROP CONSTRAINT privacy_case_check2,
    ADD COLUMN regime        text        NOT NULL DEFAULT 'voluntary' CHECK (regime IN ('ccpa', 'gdpr', 'voluntary')),
    ADD COLUMN wish          bytea       CHECK (length(wish) = 16),   -- keyed hash: the same for the same wish
    ADD COLUMN owner         bytea       CHECK (length(owner) = 16),  -- keyed hash of the account
    ADD COLUMN details       text,                                    -- what else was said, under the case's key
    ADD COLUMN state_at      timestamptz,
    ADD COLUMN needed        text[]      NOT NULL DEFAULT '{}',
    ADD COLUMN proofs        text[]      NOT NULL DEFAULT '{}',
    ADD COLUMN verified_at   timestamptz,
    ADD COLUMN lapses_at     timestamptz,
    ADD COLUMN outcome       text        CHECK (outcome IN ('fulfilled', 'denied')),
    ADD COLUMN reason        text,
    ADD COLUMN extended_at   timestamptz,
    ADD COLUMN escalated_to  text,
    ADD COLUMN unanswerable  boolean     NOT NULL DEFAULT false,
    ADD COLUMN version       int         NOT NULL DEFAULT 0,          -- of what the platform was told last
    ADD COLUMN told          text        NOT NULL DEFAULT '',
    ADD COLUMN entries       int         NOT NULL DEFAULT 0,          -- of its history
    ADD COLUMN risks         text[]      NOT NULL DEFAULT '{}',       -- clocks that are going to be missed, as forecast
    ADD COLUMN parts         boolean     NOT NULL DEFAULT false;      -- copies for it lie in the blob store
UPDATE privacy_case SET wish = subject_pseudonym, owner = subject_pseudonym;
ALTER TABLE privacy_case
    ALTER COLUMN wish SET NOT NULL,
    ALTER COLUMN owner SET NOT NULL,
    ADD CHECK (kind IN ('erasure', 'closure', 'child_report', 'access', 'portability', 'access:categories', 'rectification',
                        'sale:opt-out', 'inquiry')),
    ADD CHECK (channel IN ('settings', 'api', 'support')),
    ADD CHECK (state IN ('requested', 'wave_1', 'wave_2', 'probing', 'completed', 'sweeping', 'certified', 'withdrawn',
                         'lapsed', 'triage', 'working', 'packing', 'answering', 'fulfilled', 'denied')),
    -- Plain ids stay while somebody has to be found or written to, and never while a deletion is under way.
    ADD CHECK (state IN ('requested', 'triage', 'working', 'packing', 'answering') OR account IS NULL),
    ADD CHECK ((ended_at IS NOT NULL) = (state IN ('certified', 'withdrawn', 'lapsed', 'fulfilled', 'denied')));
DROP INDEX privacy_case_open;
-- The same wish twice is one case.
CREATE UNIQUE INDEX privacy_case_open ON privacy_case (wish) WHERE ended_at IS NULL;
CREATE INDEX privacy_case_subject ON privacy_case (subject_pseudonym);
CREATE INDEX privacy_case_owner ON privacy_case (owner);
CREATE INDEX privacy_case_parts ON privacy_case (id) WHERE parts;

ALTER TABLE case_request
    DROP CONSTRAINT case_request_channel_check,
    ADD CHECK (channel IN ('settings', 'api', 'support')),
    ADD COLUMN acknowledged_at timestamptz,
    DROP COLUMN code_hash;                            -- codes are made and kept by notifications
-- Each had its mail, of which nobody noted for which request it was.
UPDATE case_request SET acknowledged_at = received_at;

ALTER TABLE case_receipt
    DROP CONSTRAINT case_receipt_action_check,
    ADD CHECK (action IN ('envelope', 'bar', 'erase', 'hold', 'release', 'discover', 'export', 'rectify'));

ALTER TABLE case_mail ADD COLUMN request text;        -- the request that it acknowledges

-- What happened to a case, who did it and why. It only grows, and ends with its case.
CREATE TABLE case_entry (
    case_id text        NOT NULL REFERENCES privacy_case ON DELETE CASCADE,
    number  int         NOT NULL,
    at      timestamptz NOT NULL,
    what    text        NOT NULL,
    state   text        NOT NULL,
    actor   text        NOT NULL,
    role    text        NOT NULL,
    reason  text        NOT NULL,
    PRIMARY KEY (case_id, number)
);
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'steward_retention_app') THEN
        REVOKE UPDATE, DELETE, TRUNCATE ON case_entry FROM steward_retention_app;
    END IF;
END $$;
CREATE FUNCTION case_entry_stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the history of a case only grows' USING ERRCODE = 'check_violation';
END $$;
CREATE TRIGGER case_entry_stays BEFORE UPDATE OR TRUNCATE ON case_entry EXECUTE FUNCTION case_entry_stays();

-- Packages that people can fetch. The link's token is known by its keyed hash alone.
CREATE TABLE package (
    case_id    text        PRIMARY KEY REFERENCES privacy_case ON DELETE CASCADE,
    token_hash bytea       NOT NULL UNIQUE CHECK (length(token_hash) = 16),
    size       bigint      NOT NULL,
    sha256     text        NOT NULL,
    made_at    timestamptz NOT NULL,
    not_after  timestamptz NOT NULL,
    fetched    int         NOT NULL DEFAULT 0,
    gone_at    timestamptz,                            -- nobody gets it any more
    dropped_at timestamptz                             -- and the store has it no more
);
CREATE INDEX package_there ON package (not_after) WHERE dropped_at IS NULL;

-- How long the steps of cases took lately, for the forecast: the last ones of each count. Only ever added to, so that no
-- case waits for another one; a job takes away what counts no more.
CREATE TABLE step_taken (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind    text   NOT NULL,
    step    text   NOT NULL,
    seconds double precision NOT NULL CHECK (seconds >= 0)
);
CREATE INDEX step_taken_step ON step_taken (kind, step, id);
