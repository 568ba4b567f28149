-- What audit has found: every full proof, and every verdict that differs from the one before it. Nothing of a person.
CREATE TABLE verdict (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    proved_at   timestamptz NOT NULL,
    kind        text    NOT NULL CHECK (kind IN ('full', 'increment')),
    ok          boolean NOT NULL,
    determined  boolean NOT NULL,           -- false: a database or Kafka could not be asked
    duration_ms int     NOT NULL,
    body        jsonb   NOT NULL            -- the verdict as `steward check --json` prints it
);
