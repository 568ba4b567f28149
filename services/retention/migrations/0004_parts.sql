-- Copies for an entry of the register, which nobody can open any more, lie in the blob store until a job takes them away.

ALTER TABLE disclosure_course ADD COLUMN parts boolean NOT NULL DEFAULT false;
CREATE INDEX disclosure_course_parts ON disclosure_course (id) WHERE parts;
