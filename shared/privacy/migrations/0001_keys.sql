-- Day keys: a database of its own, in no service's backup. Destroying a day's key ends what it protected.
CREATE TABLE day_key (
    purpose    text  NOT NULL,
    day        date  NOT NULL,
    id         bigint GENERATED ALWAYS AS IDENTITY,
    key        bytea NOT NULL CHECK (length(key) = 32),
    created_at timestamptz NOT NULL,
    PRIMARY KEY (purpose, day)
);
