-- Keys, in a database of their own that is in no service's backup. Each is wrapped by a master key that PostgreSQL never
-- sees; deleting a row ends what its key protected.
CREATE TABLE vault_key (
    purpose    text  NOT NULL,            -- seen, stale, ip: by day; ingress: by day; subject, case, hold, tombstone
    name       text  NOT NULL,            -- the day, the subject's hash, the case
    wrapped    bytea NOT NULL,
    wrapped_by text  NOT NULL,            -- the master key's id
    public     bytea,                     -- of a pair: what others seal to
    created_at timestamptz NOT NULL,
    PRIMARY KEY (purpose, name)
);
-- The auditor looks for the subjects of cases, and may read no other key.
ALTER TABLE vault_key ENABLE ROW LEVEL SECURITY;
CREATE POLICY auditor ON vault_key USING (current_user <> 'steward_auditor' OR purpose = 'case');
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'steward_auditor') THEN
        GRANT SELECT ON vault_key TO steward_auditor;
    END IF;
END $$;
CREATE INDEX vault_key_wrapped_by ON vault_key (wrapped_by);
