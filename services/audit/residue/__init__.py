"""What is left of an erased subject: looked for in every database, by the auditor's own reading of their catalogues."""
