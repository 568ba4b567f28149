-- Notes that account holders wrote, each for a workspace.
CREATE TABLE IF NOT EXISTS support_note (
    note      text PRIMARY KEY,
    workspace text NOT NULL,
    account   text NOT NULL,
    text      text NOT NULL          -- sealed by the platform
);
CREATE INDEX IF NOT EXISTS support_note_workspace ON support_note (workspace);
-- Who is erased, as keyed hashes.
CREATE TABLE IF NOT EXISTS suppressed (hash text PRIMARY KEY);
-- What was ordered, and what was answered: published until Kafka has it.
CREATE TABLE IF NOT EXISTS answer (
    case_id text NOT NULL,
    epoch   int  NOT NULL,
    body    jsonb NOT NULL,
    sent    boolean NOT NULL DEFAULT false,
    PRIMARY KEY (case_id, epoch)
);
-- How far each partition has been handled, beside what came of it.
CREATE TABLE IF NOT EXISTS place (topic text, part int, next_offset bigint NOT NULL, PRIMARY KEY (topic, part));
-- What the columns hold, for whoever scans this database.
CREATE TABLE IF NOT EXISTS mesh_data_map (
    table_name text, column_name text, category text NOT NULL, use text NOT NULL, on_erasure text NOT NULL,
    ground text NOT NULL, period_days int, map_version text NOT NULL, PRIMARY KEY (table_name, column_name)
);
