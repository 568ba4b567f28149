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

-- Orders to look for what is left of a case's subjects, and what was seen.
CREATE TABLE scan (
    attempt    uuid        PRIMARY KEY,     -- the id of the order
    case_id    uuid        NOT NULL,
    epoch      int         NOT NULL,
    action     text        NOT NULL CHECK (action IN ('probe', 'sweep')),
    sealed     text,                        -- the subjects, under the case's key; NULL when they have been looked for
    ordered_at timestamptz NOT NULL,
    stores     jsonb,
    done_at    timestamptz
);
CREATE INDEX scan_waiting ON scan (ordered_at) WHERE done_at IS NULL;
