-- De-duplication: 48 bits of the id's time, then the id enciphered under its day's key. Time order keeps the index fast; the key of
-- the day is destroyed with the day's partition, and no account stands here.
CREATE TABLE seen (
    key    bytea  NOT NULL PRIMARY KEY,
    digest bigint NOT NULL                -- of the content: same id, other digest = a conflict
) PARTITION BY RANGE (key);

-- What a generation was charged, where its log row ends before de-duplication does, or never was: what a correction reverses
-- by. The key is that of `seen`, and ends as it does; nothing here leads to anybody.
CREATE TABLE charged (
    key            bytea       NOT NULL PRIMARY KEY,
    owner          bytea       NOT NULL,  -- tells whose it is to who knows workspace, generation and the day's key
    occurred_at    timestamptz NOT NULL,
    retention_days smallint    NOT NULL,  -- 0: its sums are those of days, without key and model
    input_tokens   bigint      NOT NULL,
    output_tokens  bigint      NOT NULL,
    amount_pico    bigint      NOT NULL,
    tier           text        NOT NULL,
    rule           text        NOT NULL,
    price_version  text        NOT NULL,
    quantities     text        NOT NULL   -- JSON: everything that was reported, by unit
) PARTITION BY RANGE (key);

-- One row per generation, for as long as its workspace wants it (never for a retention of 0). No unique key: `seen`
-- stands before it. Dropped by the day on which it expires; hidden at occurred_at + retention_days, or earlier by what its
-- workspace wants now.
CREATE TABLE request_log (
    expires_on     date        NOT NULL,
    occurred_at    timestamptz NOT NULL,
    retention_days smallint    NOT NULL CHECK (retention_days BETWEEN 1 AND 90),
    generation_id  uuid        NOT NULL,
    generation_ref text,
    account        text        NOT NULL,
    workspace      text        NOT NULL,
    key_id         text        NOT NULL,
    provider       text        NOT NULL,
    model          text        NOT NULL,
    tier           text        NOT NULL,  -- with the context tier that rated it
    ended          text        NOT NULL,  -- outcome/finish reason
    rule           text        NOT NULL,
    quantities     text        NOT NULL,  -- JSON: everything that was reported, by unit
    input_tokens   bigint      NOT NULL,
    output_tokens  bigint      NOT NULL,
    amount_pico    bigint      NOT NULL,
    price_version  text        NOT NULL,
    record         uuid        NOT NULL,  -- the rated record and the line in it: the way to the charge
    line           int         NOT NULL
) PARTITION BY RANGE (expires_on);
CREATE INDEX request_log_generation ON request_log USING brin (generation_id uuid_minmax_ops)
    WITH (pages_per_range = 16, autosummarize = on);

-- How long each workspace wants its log kept, as retention publishes it. `ended_before`: rows up to that instant ended under
-- an earlier setting, and no later one brings them back. `treated`: the version by which the rows on disk have been treated;
-- `treating`: the one that is being treated. `revision`: with which it came to be, for processes that keep it in memory.
CREATE TABLE workspace_setting (
    workspace          text PRIMARY KEY,
    version            bigint      NOT NULL,
    log_retention_days smallint    NOT NULL CHECK (log_retention_days BETWEEN 0 AND 90),
    ended_before       timestamptz NOT NULL DEFAULT '-infinity',
    treating           bigint      NOT NULL DEFAULT 0,
    treated            bigint      NOT NULL DEFAULT 0,
    revision           bigint      NOT NULL
);
CREATE INDEX workspace_setting_revision ON workspace_setting (revision);
CREATE INDEX workspace_setting_open ON workspace_setting (workspace) WHERE treated < version;

-- The same for keys whose makers have restricted their log for themselves: of both, the shorter counts. Who made a key is not
-- known here; `account` owns its workspace.
CREATE TABLE key_setting (
    key                text PRIMARY KEY,
    account            text        NOT NULL,
    version            bigint      NOT NULL,
    log_retention_days smallint    NOT NULL CHECK (log_retention_days BETWEEN 0 AND 90),
    ended_before       timestamptz NOT NULL DEFAULT '-infinity',
    treating           bigint      NOT NULL DEFAULT 0,
    treated            bigint      NOT NULL DEFAULT 0,
    revision           bigint      NOT NULL
);
CREATE INDEX key_setting_account ON key_setting (account);
CREATE INDEX key_setting_revision ON key_setting (revision);
CREATE INDEX key_setting_open ON key_setting (key) WHERE treated < version;
CREATE TABLE setting_revision (single boolean PRIMARY KEY DEFAULT true CHECK (single), revision bigint NOT NULL);
INSERT INTO setting_revision (revision) VALUES (0);

-- Usage that cannot be rated yet, visible and counted. At retention 0 without generation, key and reference.
CREATE TABLE quarantine (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    reason     text        NOT NULL,
    missing    text        NOT NULL,
    event_type text        NOT NULL,
    event_id   uuid,
    event_at   timestamptz NOT NULL,
    known_at   timestamptz NOT NULL,      -- the record's LogAppendTime: what was known then rates it
    arrived_at timestamptz NOT NULL,
    provider   text        NOT NULL,
    model      text        NOT NULL,
    usage      jsonb       NOT NULL,
    line_key   bytea       NOT NULL,      -- becomes the line's id when it is rated
    original_key bytea                    -- by what the generation that a correction is about is remembered
);
-- Ids outside of the window, by a hash under their month's key: each is quarantined once, for a window from its arrival.
CREATE TABLE stale_seen (
    ident   bytea NOT NULL PRIMARY KEY,
    seen_on date  NOT NULL
);

-- Prices: versions are facts and are never changed; holds and releases are added to the body. `spoken`: the units that
-- the source named, NULL where it spoke of all; `reasons`: why the guard held it.
CREATE TABLE price (
    version    text PRIMARY KEY,
    provider   text NOT NULL,
    model      text NOT NULL,
    tier       text NOT NULL,
    body       jsonb NOT NULL,
    known_from timestamptz NOT NULL,
    source     text NOT NULL,
    revision   bigint NOT NULL,           -- with which it came, or was decided about
    name       text NOT NULL,             -- provider/model/tier/window, in small letters
    batch      text,                      -- the import that it came with
    spoken     text[],
    reasons    jsonb NOT NULL DEFAULT '[]',
    held_since timestamptz,
    decision   text,                      -- released, agreed, rejected or superseded
    decided_at timestamptz,
    decided_by text,                      -- a person in operations, or the version that agreed
    ticket     text
);
CREATE INDEX price_held ON price (known_from) WHERE held_since IS NOT NULL;
CREATE INDEX price_revision_of ON price (revision);
CREATE INDEX price_name ON price (name, source, known_from);
CREATE TABLE price_revision (single boolean PRIMARY KEY DEFAULT true CHECK (single), revision bigint NOT NULL);
INSERT INTO price_revision (revision) VALUES (0);

-- Orders to rate a range of the request log again, and what became of them.
CREATE TABLE rerating (
    id          uuid        PRIMARY KEY,  -- of the command
    ordered_at  timestamptz NOT NULL,
    asked       jsonb       NOT NULL,
    examined    bigint      NOT NULL DEFAULT 0,
    changed     bigint      NOT NULL DEFAULT 0,
    unpriced    bigint      NOT NULL DEFAULT 0,
    before_pico numeric     NOT NULL DEFAULT 0,
    after_pico  numeric     NOT NULL DEFAULT 0,
    ended_at    timestamptz
);

-- Own rating beside what providers say they charged, over all workspaces. `cost_pending` has a few rows of each batch,
-- which a job adds up.
CREATE TABLE cost_comparison (
    day           int     NOT NULL,       -- days since 1970, UTC
    provider      text    NOT NULL,
    model         text    NOT NULL,
    explanation   text    NOT NULL,       -- equal, open, or why not equal
    generations   bigint  NOT NULL,
    rated_pico    numeric NOT NULL,
    reported_pico numeric NOT NULL,
    PRIMARY KEY (day, provider, model, explanation)
);
CREATE TABLE cost_pending (
    day           int     NOT NULL,
    provider      text    NOT NULL,
    model         text    NOT NULL,
    explanation   text    NOT NULL,
    generations   bigint  NOT NULL,
    rated_pico    numeric NOT NULL,
    reported_pico numeric NOT NULL
);

-- Sums of one batch, waiting to be added to the rollups in a transaction of their own, exactly once.
CREATE TABLE pending (
    id            bigint   GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workspaces    text[]   NOT NULL,      -- one element a sum, in every column
    keys          text[]   NOT NULL,      -- NULL, like the model, where no request log is kept
    models        text[]   NOT NULL,
    hours         bigint[] NOT NULL,
    generations   bigint[] NOT NULL,
    input_tokens  bigint[] NOT NULL,
    output_tokens bigint[] NOT NULL,
    amounts       bigint[] NOT NULL
);
-- Seconds old when they go: to compress them would cost more than to write them.
ALTER TABLE pending ALTER workspaces SET STORAGE EXTERNAL, ALTER keys SET STORAGE EXTERNAL,
    ALTER models SET STORAGE EXTERNAL, ALTER hours SET STORAGE EXTERNAL, ALTER generations SET STORAGE EXTERNAL,
    ALTER input_tokens SET STORAGE EXTERNAL, ALTER output_tokens SET STORAGE EXTERNAL, ALTER amounts SET STORAGE EXTERNAL;

CREATE TABLE rollup_hourly (
    workspace     text   NOT NULL,
    key_id        text   NOT NULL,
    model         text   NOT NULL,
    hour          int    NOT NULL,        -- hours since 1970, UTC
    generations   bigint NOT NULL,
    input_tokens  bigint NOT NULL,
    output_tokens bigint NOT NULL,
    amount_pico   numeric NOT NULL,
    PRIMARY KEY (hour, workspace, key_id, model)
) PARTITION BY RANGE (hour);
-- For workspaces that keep no request log: by day, without key and model.
CREATE TABLE rollup_daily (
    workspace     text   NOT NULL,
    day           int    NOT NULL,        -- days since 1970, UTC
    generations   bigint NOT NULL,
    input_tokens  bigint NOT NULL,
    output_tokens bigint NOT NULL,
    amount_pico   numeric NOT NULL,
    PRIMARY KEY (day, workspace)
) PARTITION BY RANGE (day);
