-- Connections and sign-ins: ids only. Both tables are dropped by the last day that a row may be there, which is over no
-- later than the policy's maximum after the connection.
CREATE TABLE access_row (
    expires_on  date        NOT NULL,
    event_id    uuid        NOT NULL,
    occurred_at timestamptz NOT NULL,
    account     text,
    workspace   text,
    member      text,
    key_id      text,
    identity    text,                      -- keyed hash of the external identity
    session     text,                      -- keyed hash of the session
    kind        text        NOT NULL CHECK (kind IN ('sign_in', 'sign_out', 'api', 'dashboard')),
    outcome     text        NOT NULL CHECK (outcome IN ('ok', 'refused')),
    agent       text        NOT NULL CHECK (agent IN ('browser', 'sdk', 'cli', 'other')),
    PRIMARY KEY (expires_on, event_id),
    -- What an API key did is the workspace's, and names no person by anything that an erasure would not find.
    CHECK (key_id IS NULL OR (identity IS NULL AND session IS NULL))
) PARTITION BY RANGE (expires_on);

-- The address of a connection, apart from its row, since it ends earlier.
CREATE TABLE access_ip (
    expires_on date  NOT NULL,
    event_id   uuid  NOT NULL,
    address    text  NOT NULL,              -- sealed under the key of the connection's day
    correlate  bytea NOT NULL CHECK (length(correlate) = 16),  -- same address, same day: same value
    PRIMARY KEY (expires_on, event_id)
) PARTITION BY RANGE (expires_on);
