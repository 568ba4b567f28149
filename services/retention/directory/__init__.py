"""Who is who: the directory that cases ask."""
