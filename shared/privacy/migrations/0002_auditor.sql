-- The auditor looks for subjects in dead letters, too: it may read the keys under which undecodable bytes stand there.
DROP VIEW case_key;
CREATE VIEW auditor_key WITH (security_barrier) AS
    SELECT purpose, name, id, wrapped, wrapped_by, public FROM vault_key WHERE purpose IN ('case', 'letter');

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'steward_auditor') THEN
        GRANT SELECT ON auditor_key TO steward_auditor;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'steward_keys_app') THEN
        REVOKE INSERT, UPDATE, DELETE ON auditor_key FROM steward_keys_app;
    END IF;
END $$;
