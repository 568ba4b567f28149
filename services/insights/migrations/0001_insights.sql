-- What people did in the dashboard and the playground. An event's time gives its partition, so that the same event never
-- counts twice. Dropped after the day on which it expires; hidden at the instant.
CREATE TABLE activity (
    expires_on  date        NOT NULL,
    event_id    uuid        NOT NULL,
    occurred_at timestamptz NOT NULL,
    account     text        NOT NULL,
    workspace   text        NOT NULL,
    member      text,
    surface     text        NOT NULL CHECK (surface IN ('dashboard', 'playground')),
    action      text        NOT NULL,
    model       text,
    PRIMARY KEY (expires_on, event_id)
) PARTITION BY RANGE (expires_on);
CREATE INDEX activity_workspace ON activity (workspace, occurred_at);
CREATE INDEX activity_member ON activity (member) WHERE member IS NOT NULL;

-- The settings in force, of workspaces that ever stated some.
CREATE TABLE workspace_setting (
    workspace        text    PRIMARY KEY,
    account          text    NOT NULL,
    version          bigint  NOT NULL,
    activity_opt_out boolean NOT NULL,
    kept_since       timestamptz           -- when the last opt-out ended: nothing from before is kept
);

-- The same of members who have restricted themselves, in whichever workspace.
CREATE TABLE member_setting (
    member           text    PRIMARY KEY,
    version          bigint  NOT NULL,
    activity_opt_out boolean NOT NULL,
    kept_since       timestamptz
);
CREATE INDEX member_setting_out ON member_setting (member) WHERE activity_opt_out;
