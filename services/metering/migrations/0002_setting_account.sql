-- Whose workspace a setting is of. Rows from before have none until their setting is read once more: the compacted topic is
-- read again from its start for that.

ALTER TABLE workspace_setting ADD COLUMN account text;
CREATE INDEX workspace_setting_account ON workspace_setting (account);
UPDATE mesh_cursor SET epoch = epoch + 1, next_offset = 0 WHERE topic = 'mesh.workspace-settings';
