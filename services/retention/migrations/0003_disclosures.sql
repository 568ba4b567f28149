-- The register of disclosures: what was entered, by whom, on which basis. What was said only grows; how far it is stands apart.

-- How far an entry is. Its end is the end of everything that was said of it.
CREATE TABLE disclosure_course (
    id            text        PRIMARY KEY,   -- of the operator's command
    state         text        NOT NULL CHECK (state IN ('gagged', 'owed', 'asked', 'told', 'unheard')),
    sealed        text,                      -- whose data, under the entry's own key
    sealed_owner  text,                      -- whom to tell, under the same key
    gag_until     timestamptz,               -- the end in force, or that was
    epoch         int         NOT NULL,      -- of the latest order for an envelope
    kept          int         NOT NULL CHECK (kept <= epoch),
    sends         int         NOT NULL,
    first_sent_at timestamptz,
    order_at      timestamptz,
    asked_at      timestamptz,
    told_at       timestamptz,
    copies_until  timestamptz,
    next_at       timestamptz,               -- when time alone changes something
    needs_person  text[]      NOT NULL DEFAULT '{}',
    expires_at    timestamptz,
    key_destroyed boolean     NOT NULL DEFAULT false,
    parts         boolean     NOT NULL DEFAULT false,   -- copies that nobody can open any more lie in the blob store
    CHECK ((state IN ('asked', 'told', 'unheard')) = (asked_at IS NOT NULL)),
    CHECK ((state = 'told') = (told_at IS NOT NULL)),
    CHECK ((state = 'told') = (expires_at IS NOT NULL)),
    CHECK (state <> 'gagged' OR gag_until IS NOT NULL),
    CHECK (NOT key_destroyed OR (sealed IS NULL AND sealed_owner IS NULL))
);
CREATE INDEX disclosure_course_next ON disclosure_course (next_at) WHERE next_at IS NOT NULL;
CREATE INDEX disclosure_course_parts ON disclosure_course (id) WHERE parts;
CREATE INDEX disclosure_course_enveloping ON disclosure_course (id) WHERE epoch > 0 AND kept = 0 AND asked_at IS NULL;

CREATE TABLE disclosure (
    id                text        PRIMARY KEY REFERENCES disclosure_course ON DELETE CASCADE,
    kind              text        NOT NULL CHECK (kind IN ('account', 'workspace')),
    subject_pseudonym bytea       NOT NULL CHECK (length(subject_pseudonym) = 16),
    owner             bytea       NOT NULL CHECK (length(owner) = 16),   -- keyed hash of the account that is told
    basis             text        NOT NULL CHECK (basis IN ('legal_process', 'protection')),
    instrument        text,
    reference         text,
    protects          text        CHECK (protects IN ('rights', 'property', 'safety')),
    decided_by        text,
    authority         text        NOT NULL,
    tables            jsonb       NOT NULL,  -- holder -> names of its tables
    since             timestamptz,
    until             timestamptz,
    gag_until         timestamptz,           -- as it was entered
    entered_at        timestamptz NOT NULL,
    actor             text        NOT NULL,
    role              text        NOT NULL,
    ticket            text        NOT NULL,
    -- Legal process has an instrument; anything else has a person who decided, and says what it protects.
    CHECK ((basis = 'legal_process') = (instrument IS NOT NULL AND reference IS NOT NULL)),
    CHECK ((basis = 'protection') = (protects IS NOT NULL AND decided_by IS NOT NULL)),
    CHECK ((since IS NULL) = (until IS NULL) AND since < until)
);
CREATE INDEX disclosure_subject ON disclosure (subject_pseudonym);
CREATE INDEX disclosure_owner ON disclosure (owner);

-- What happened to an entry, who did it and why: every order, every read of its rows.
CREATE TABLE disclosure_event (
    number bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id     text        NOT NULL REFERENCES disclosure_course ON DELETE CASCADE,
    at     timestamptz NOT NULL,
    what   text        NOT NULL,
    detail text        NOT NULL,
    actor  text        NOT NULL,
    role   text        NOT NULL,
    reason text        NOT NULL
);
CREATE INDEX disclosure_event_id ON disclosure_event (id);

-- What was extracted, each within its entry's scope.
CREATE TABLE disclosure_extract (
    command    text        PRIMARY KEY,      -- of the operator
    id         text        NOT NULL REFERENCES disclosure_course ON DELETE CASCADE,
    epoch      int         NOT NULL,
    tables     jsonb       NOT NULL,
    since      timestamptz,
    until      timestamptz,
    ordered_at timestamptz NOT NULL,
    UNIQUE (id, epoch)
);

DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'steward_retention_app') THEN
        REVOKE UPDATE, DELETE, TRUNCATE ON disclosure, disclosure_event, disclosure_extract FROM steward_retention_app;
        REVOKE TRUNCATE ON disclosure_course FROM steward_retention_app;
    END IF;
END $$;
CREATE FUNCTION disclosure_stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the register of disclosures only grows' USING ERRCODE = 'check_violation';
END $$;
CREATE TRIGGER disclosure_stays BEFORE UPDATE OR TRUNCATE ON disclosure EXECUTE FUNCTION disclosure_stays();
CREATE TRIGGER disclosure_event_stays BEFORE UPDATE OR TRUNCATE ON disclosure_event EXECUTE FUNCTION disclosure_stays();
CREATE TRIGGER disclosure_extract_stays BEFORE UPDATE OR TRUNCATE ON disclosure_extract EXECUTE FUNCTION disclosure_stays();
-- An entry whose person has not been told does not go.
CREATE TRIGGER disclosure_course_stays BEFORE DELETE ON disclosure_course
    FOR EACH ROW WHEN (OLD.expires_at IS NULL) EXECUTE FUNCTION disclosure_stays();

-- What each holder owes for an extract.
CREATE TABLE disclosure_errand (
    id            text        NOT NULL REFERENCES disclosure_course ON DELETE CASCADE,
    epoch         int         NOT NULL,
    holder        text        NOT NULL,
    due_at        timestamptz,
    sends         int         NOT NULL,
    first_sent_at timestamptz,
    done_at       timestamptz,
    receipt       jsonb,                     -- what was copied, table by table: numbers and names of columns
    PRIMARY KEY (id, epoch, holder)
);
