"""A holder that somebody else could have written: it keeps support notes, and knows the mesh by its contract alone.

Nothing of `services`, of the runtime or of the holder engine is imported here: events, topics and ids of `shared.contract`,
Kafka, PostgreSQL, and the layout of two rows of the key database (`keys.py`), which a holder's documentation tells.
"""
