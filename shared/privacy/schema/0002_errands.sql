-- What this holder was asked about somebody without erasing: what it has, a copy of it, a correction.
CREATE TABLE mesh_errand (
    case_id   uuid        NOT NULL,
    epoch     int         NOT NULL,
    action    text        NOT NULL CHECK (action IN ('discover', 'export', 'rectify')),
    sealed    text,                       -- the subjects, under the case's key; NULL when it is done
    value     text,                       -- what is right, likewise
    arguments jsonb       NOT NULL,
    asked_at  timestamptz NOT NULL,
    receipt   jsonb,
    done_at   timestamptz,
    PRIMARY KEY (case_id, epoch)
);
CREATE INDEX mesh_errand_waiting ON mesh_errand (asked_at) WHERE done_at IS NULL;

-- Of whom there are copies in the blob store: so that an erasure takes them along.
CREATE TABLE mesh_export (
    hash    bytea       NOT NULL CHECK (length(hash) = 16),
    case_id uuid        NOT NULL,
    epoch   int         NOT NULL,
    made_at timestamptz NOT NULL,
    PRIMARY KEY (hash, case_id, epoch)
);
