-- Keys, in a database of their own that is in no service's backup. Each is wrapped by a master key that PostgreSQL never
-- sees; deleting a row ends what its key protected.
CREATE TABLE vault_key (
    purpose    text  NOT NULL,            -- seen, stale, ip, ingress: by day; subject, case, hold, tombstone
    name       text  NOT NULL,            -- the day, the subject's hash, the case
    id         text  NOT NULL UNIQUE,     -- stands in every value under this key; never used again
    wrapped    bytea NOT NULL,
    wrapped_by text  NOT NULL,            -- the master key's id
    public     bytea,                     -- of a pair: what others seal to
    created_at timestamptz NOT NULL,
    PRIMARY KEY (purpose, name)
);

-- What the auditor may read: of each key that it is there and since when, and the keys of cases, whose subjects it looks
-- for. The view has the rights of its owner.
CREATE VIEW case_key WITH (security_barrier) AS
    SELECT purpose, name, id, wrapped, wrapped_by, public FROM vault_key WHERE purpose = 'case';

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'steward_auditor') THEN
        GRANT SELECT (purpose, id, wrapped_by, created_at) ON vault_key TO steward_auditor;
        GRANT SELECT ON case_key TO steward_auditor;
    END IF;
    -- Services make keys and destroy them. Only the owner wraps them anew; a key is never another one under the same id.
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'steward_keys_app') THEN
        REVOKE UPDATE, TRUNCATE ON vault_key FROM steward_keys_app;
        REVOKE INSERT, UPDATE, DELETE ON case_key FROM steward_keys_app;
    END IF;
END $$;
