-- What a holder of personal data keeps beside its own tables.

-- Who is erased. No event of these subjects has effects any more. `applied`: this database's rows have been treated.
CREATE TABLE mesh_tombstone (
    hash    bytea PRIMARY KEY CHECK (length(hash) = 16),
    kind    text        NOT NULL,
    case_id uuid        NOT NULL,
    at      timestamptz NOT NULL,
    applied boolean     NOT NULL DEFAULT false
);
CREATE INDEX mesh_tombstone_open ON mesh_tombstone (case_id) WHERE NOT applied;
CREATE INDEX mesh_tombstone_at ON mesh_tombstone (at);

-- What this holder was told to erase, and what it answered.
CREATE TABLE mesh_erasure (
    case_id      uuid        NOT NULL,
    epoch        int         NOT NULL,
    scope        text        NOT NULL,
    sealed       text,                    -- the subjects, under the case's key; NULL when they are treated
    after        jsonb       NOT NULL,    -- topic -> partition -> offset that must have been passed first
    confirmed_at timestamptz NOT NULL,
    ordered_at   timestamptz NOT NULL,
    receipt      jsonb,
    done_at      timestamptz,
    PRIMARY KEY (case_id, epoch)
);
CREATE INDEX mesh_erasure_waiting ON mesh_erasure (ordered_at) WHERE done_at IS NULL;

-- Records that a legal hold keeps, copied and sealed: so that expiry and erasure stay unconditional.
CREATE TABLE mesh_held_record (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    hold         text        NOT NULL,
    table_name   text        NOT NULL,
    subject_hash bytea       NOT NULL,
    sealed       text        NOT NULL,    -- the row as JSON, under the hold's own key
    placed_at    timestamptz NOT NULL,
    UNIQUE (hold, table_name, subject_hash, sealed)
);
CREATE INDEX mesh_held_record_hold ON mesh_held_record (hold);

-- The holder's own data map, as its code declares it: so that whoever scans this database knows what should be there.
CREATE TABLE mesh_data_map (
    table_name  text NOT NULL,
    column_name text NOT NULL,
    category    text NOT NULL,
    use         text NOT NULL,
    on_erasure  text NOT NULL,
    ground      text NOT NULL,
    period_days int,                      -- the longest that a value stands there; NULL: an account's life, or a law
    map_version text NOT NULL,
    PRIMARY KEY (table_name, column_name)
);
