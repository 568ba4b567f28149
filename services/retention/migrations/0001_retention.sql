-- Who is who, and the cases by which people are forgotten.

-- --- the directory ----------------------------------------------------------------------------------------------
-- Rows come in any order and lead to each other by ids alone: no row waits for another one.

CREATE TABLE account (
    account      text PRIMARY KEY,
    identity     text,                       -- keyed hash of the external sign-in identity
    jurisdiction text,
    opened_at    timestamptz,
    closed_at    timestamptz,
    closure_case text                        -- the case that its closing opened
);
CREATE INDEX account_closed ON account (closed_at) WHERE closed_at IS NOT NULL AND closure_case IS NULL;

CREATE TABLE workspace (
    workspace          text PRIMARY KEY,
    account            text   NOT NULL,
    created_at         timestamptz,          -- null: only its settings have been heard of
    version            bigint NOT NULL DEFAULT 0 CHECK (version >= 0),
    log_retention_days int    CHECK (log_retention_days BETWEEN 0 AND 90),
    activity_opt_out   boolean,
    changed_at         timestamptz,
    CHECK ((version > 0) = (log_retention_days IS NOT NULL AND activity_opt_out IS NOT NULL AND changed_at IS NOT NULL))
);
CREATE INDEX workspace_account ON workspace (account);
CREATE INDEX workspace_changed ON workspace (changed_at) WHERE version > 0;

CREATE TABLE member (
    workspace text NOT NULL,
    member    text NOT NULL,
    account   text NOT NULL,
    role      text NOT NULL CHECK (role IN ('administrator', 'member')),
    PRIMARY KEY (workspace, member)
);
CREATE INDEX member_member ON member (member);
CREATE INDEX member_account ON member (account);

CREATE TABLE api_key (
    key        text PRIMARY KEY,
    account    text NOT NULL,
    workspace  text NOT NULL,
    member     text,
    name       text,                         -- sealed under its account's key
    created_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX api_key_account ON api_key (account);
CREATE INDEX api_key_workspace ON api_key (workspace);
CREATE INDEX api_key_member ON api_key (member) WHERE member IS NOT NULL;

-- What members have restricted for themselves, in every workspace. `alone_since`: since when it is known that its member is in
-- no workspace and has made no key; nobody's restriction outlives the policy's cap from then on.
CREATE TABLE restriction (
    member             text        PRIMARY KEY,
    version            bigint      NOT NULL CHECK (version > 0),
    log_retention_days int         NOT NULL CHECK (log_retention_days BETWEEN 0 AND 90),
    activity_opt_out   boolean     NOT NULL,
    changed_at         timestamptz NOT NULL,
    alone_since        timestamptz
);
CREATE INDEX restriction_changed ON restriction (changed_at);

-- What would be lost with a workspace.
CREATE TABLE credit_known (
    workspace    text    PRIMARY KEY,
    version      bigint  NOT NULL,
    balance_pico numeric NOT NULL
);

-- --- cases ------------------------------------------------------------------------------------------------------

CREATE TABLE privacy_case (
    id                text PRIMARY KEY,      -- of the event that asked for it
    kind              text NOT NULL CHECK (kind IN ('erasure', 'closure')),
    scope             text NOT NULL CHECK (scope IN ('account', 'workspace', 'member')),
    channel           text NOT NULL CHECK (channel IN ('settings', 'support')),
    state             text NOT NULL CHECK (state IN ('requested', 'wave_1', 'wave_2', 'probing', 'completed', 'sweeping',
                          'certified', 'withdrawn', 'lapsed')),
    account           text,                  -- plain only while it waits for its confirmation
    target            text,
    subject_pseudonym bytea NOT NULL CHECK (length(subject_pseudonym) = 16),
    sealed            text,                  -- who is erased, under the case's key
    sealed_account    text,                  -- whom to tell when it is done, under the same key
    subjects          int   NOT NULL DEFAULT 0,
    attempts          int   NOT NULL CHECK (attempts BETWEEN 0 AND 5),
    requested_at      timestamptz NOT NULL,
    confirmed_at      timestamptz,
    completed_at      timestamptz,
    answered_at       timestamptz,
    ended_at          timestamptz,
    moved_at          timestamptz,
    due_at            timestamptz,           -- of its earliest open clock
    next_at           timestamptz,           -- when time alone changes something
    expires_at        timestamptz,
    needs_person      text[] NOT NULL DEFAULT '{}',
    key_destroyed     boolean NOT NULL DEFAULT false,
    CHECK ((account IS NULL) = (target IS NULL)),
    CHECK (state = 'requested' OR account IS NULL),
    CHECK ((ended_at IS NOT NULL) = (state IN ('certified', 'withdrawn', 'lapsed')))
);
CREATE INDEX privacy_case_next ON privacy_case (next_at) WHERE next_at IS NOT NULL;
-- The same wish twice is one case.
CREATE UNIQUE INDEX privacy_case_open ON privacy_case (subject_pseudonym) WHERE ended_at IS NULL;

-- Each time that somebody asked: a second wish joins the case of the first.
CREATE TABLE case_request (
    id          text PRIMARY KEY,
    case_id     text NOT NULL REFERENCES privacy_case ON DELETE CASCADE,
    channel     text NOT NULL CHECK (channel IN ('settings', 'support')),
    received_at timestamptz NOT NULL,
    code_hash   bytea                        -- of the code that went out for it
);
CREATE INDEX case_request_case ON case_request (case_id);

-- How far each holder is, and the auditor.
CREATE TABLE case_holder (
    case_id       text   NOT NULL REFERENCES privacy_case ON DELETE CASCADE,
    holder        text   NOT NULL,
    epoch         int    NOT NULL,
    done          int    NOT NULL CHECK (done <= epoch),
    sends         int    NOT NULL,
    first_sent_at timestamptz,
    due_at        timestamptz,
    faults        int    NOT NULL,
    offsets       jsonb  NOT NULL,
    waived_by     text,
    ticket        text,
    waived_at     timestamptz,
    PRIMARY KEY (case_id, holder)
);

CREATE TABLE case_receipt (
    case_id    text  NOT NULL REFERENCES privacy_case ON DELETE CASCADE,
    holder     text  NOT NULL,
    action     text  NOT NULL CHECK (action IN ('envelope', 'erase', 'hold', 'release')),
    epoch      int   NOT NULL,
    hold       text  NOT NULL DEFAULT '',    -- whose receipt it is, if it is a hold's
    body       jsonb NOT NULL,               -- what was done, table by table: numbers and names of columns
    arrived_at timestamptz NOT NULL,
    PRIMARY KEY (case_id, holder, action, epoch, hold)
);

CREATE TABLE case_scan (
    case_id    text  NOT NULL REFERENCES privacy_case ON DELETE CASCADE,
    action     text  NOT NULL CHECK (action IN ('probe', 'sweep')),
    epoch      int   NOT NULL,
    stores     jsonb NOT NULL,
    arrived_at timestamptz NOT NULL,
    PRIMARY KEY (case_id, action, epoch)
);

CREATE TABLE case_mail (
    cause    text PRIMARY KEY,
    case_id  text NOT NULL REFERENCES privacy_case ON DELETE CASCADE,
    template text NOT NULL,
    asked_at timestamptz NOT NULL,
    outcome  text,
    at       timestamptz
);
CREATE INDEX case_mail_case ON case_mail (case_id);

-- Written before anything is destroyed, and kept for as long as a copy could bring somebody back.
CREATE TABLE tombstone (
    hash       bytea NOT NULL CHECK (length(hash) = 16),
    kind       text  NOT NULL,
    case_id    text  NOT NULL,
    at         timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (hash, case_id)
);
CREATE INDEX tombstone_case ON tombstone (case_id);

-- --- holds ------------------------------------------------------------------------------------------------------

CREATE TABLE hold (
    id                text PRIMARY KEY,      -- of the operator's command
    state             text NOT NULL CHECK (state IN ('placing', 'held', 'releasing', 'released')),
    holder            text NOT NULL,
    table_name        text NOT NULL,
    kind              text NOT NULL,
    subject_pseudonym bytea NOT NULL CHECK (length(subject_pseudonym) = 16),
    sealed            text,                  -- the subject, under the hold's own key
    ground            text NOT NULL,
    until             timestamptz NOT NULL,
    rows              int,                   -- so many its holder has put aside
    epoch             int  NOT NULL,
    sends             int  NOT NULL,
    first_sent_at     timestamptz,
    due_at            timestamptz,
    placed_at         timestamptz NOT NULL,
    placed_by         text NOT NULL,
    ticket            text NOT NULL,
    released_at       timestamptz,
    released_by       text,
    release_ticket    text,
    ended_at          timestamptz,
    expires_at        timestamptz,
    key_destroyed     boolean NOT NULL DEFAULT false,
    CHECK ((ended_at IS NOT NULL) = (state = 'released'))
);
CREATE INDEX hold_due ON hold (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX hold_subject ON hold (subject_pseudonym) WHERE ended_at IS NULL;

-- The holds on a case's subjects, those that were there and those that came while it went round.
CREATE TABLE case_hold (
    case_id text NOT NULL REFERENCES privacy_case ON DELETE CASCADE,
    hold    text NOT NULL REFERENCES hold ON DELETE CASCADE,
    PRIMARY KEY (case_id, hold)
);
CREATE INDEX case_hold_hold ON case_hold (hold);

-- --- certificates -----------------------------------------------------------------------------------------------

-- The log of certificates: it only grows. Its row is its lock.
CREATE TABLE certificate_log (
    one  boolean PRIMARY KEY CHECK (one),
    size bigint  NOT NULL
);
INSERT INTO certificate_log VALUES (true, 0);

CREATE TABLE merkle_node (
    level    int    NOT NULL,
    position bigint NOT NULL,
    hash     bytea  NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (level, position)
);

CREATE TABLE certificate (
    case_id   text   PRIMARY KEY REFERENCES privacy_case ON DELETE CASCADE,
    number    bigint NOT NULL UNIQUE,
    document  jsonb  NOT NULL,
    signed_at timestamptz NOT NULL
);
