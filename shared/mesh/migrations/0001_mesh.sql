-- What the runtime keeps in each service's own database, beside the service's effects.

CREATE TABLE mesh_cursor (
    grp         text   NOT NULL,
    topic       text   NOT NULL,
    part        int    NOT NULL,
    epoch       bigint NOT NULL,          -- whoever claimed last owns the partition
    next_offset bigint NOT NULL,          -- effects of every offset below it are in, none from it on
    high_offset bigint NOT NULL,          -- records below it were passed before: they change no counter
    owner       text   NOT NULL,
    claimed_at  timestamptz NOT NULL,
    PRIMARY KEY (grp, topic, part)
) WITH (fillfactor = 50);

CREATE TABLE mesh_outbox (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    shard       int    NOT NULL,
    topic       text   NOT NULL,
    part        int,                      -- explicit target partition, or null: by key
    key         bytea,
    value       bytea,
    headers     bytea,                    -- JSON [[name, base64 value], ...]
    traceparent text,
    created_at  timestamptz NOT NULL
);
ALTER TABLE mesh_outbox ALTER COLUMN value SET STORAGE EXTERNAL;

CREATE TABLE mesh_dead_letter (
    id              bigint GENERATED ALWAYS AS IDENTITY,
    expires_on      date   NOT NULL,
    grp             text   NOT NULL,
    topic           text   NOT NULL,
    part            int    NOT NULL,
    record_offset   bigint NOT NULL,
    stage           text   NOT NULL,      -- decode | handler
    reason          text   NOT NULL,
    detail          text   NOT NULL,
    key             bytea,
    headers         bytea  NOT NULL,
    payload         bytea,                -- the record; or, with undeclared fields, its declared part
    source          text,
    sequence        bigint,
    subject_hash    bytea,
    attempts        int    NOT NULL DEFAULT 1,
    state           text   NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'replaying', 'replayed')),
    counted         boolean NOT NULL,     -- whether it counts among the first passes of its topic
    first_failed_at timestamptz NOT NULL,
    PRIMARY KEY (id, expires_on)
) PARTITION BY RANGE (expires_on);
CREATE INDEX mesh_dead_letter_record ON mesh_dead_letter (topic, part, record_offset);

CREATE TABLE mesh_parked (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    grp           text   NOT NULL,
    topic         text   NOT NULL,
    key           bytea  NOT NULL,
    part          int    NOT NULL,
    record_offset bigint NOT NULL,
    record_ms     bigint NOT NULL,
    headers       bytea  NOT NULL,
    payload       bytea,
    reason        text   NOT NULL,
    parked_at     timestamptz NOT NULL,
    UNIQUE (grp, topic, part, record_offset)
);
CREATE INDEX mesh_parked_key ON mesh_parked (grp, topic, key, id);

CREATE TABLE mesh_counter (
    name  text   NOT NULL,
    part  int    NOT NULL,                -- one row per partition, so that replicas do not wait for each other
    value bigint NOT NULL,
    PRIMARY KEY (name, part)
) WITH (fillfactor = 50);

CREATE TABLE mesh_source (
    topic   text   NOT NULL,
    source  text   NOT NULL,              -- the emitting instance
    part    int    NOT NULL,
    highest bigint NOT NULL,              -- its highest sequence on this partition
    seen    bigint NOT NULL,              -- its events seen for the first time; missing = max(highest) - sum(seen)
    PRIMARY KEY (topic, source, part)
) WITH (fillfactor = 50);

CREATE TABLE mesh_job (
    name      text PRIMARY KEY,
    next_slot timestamptz NOT NULL,
    missed    bigint NOT NULL DEFAULT 0,
    ran_at    timestamptz
);

CREATE TABLE mesh_task (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name            text   NOT NULL,
    cause           text   NOT NULL,      -- one task per cause, however often it is asked for
    payload         jsonb  NOT NULL,
    position        jsonb,
    attempts        int    NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL,
    created_at      timestamptz NOT NULL,
    UNIQUE (name, cause)
);

CREATE TABLE mesh_read (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name   text NOT NULL,
    actor  text NOT NULL,
    role   text NOT NULL,
    reason text NOT NULL,
    at     timestamptz NOT NULL
);

-- What has ended because its time was over: partitions that were dropped, rows that were deleted (partition is NULL).
CREATE TABLE mesh_expiry (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_name     text        NOT NULL,
    partition      text,
    bound          timestamptz NOT NULL,  -- the instant up to which time is over
    rows_estimate  bigint      NOT NULL,
    dropped_at     timestamptz NOT NULL,
    policy_version text        NOT NULL
);
CREATE INDEX mesh_expiry_dropped_at ON mesh_expiry (dropped_at);
