"""What an API server cannot see in manifests that it would take: each module one kind of mistake.

A check is a function of an overlay's objects to sentences; none when all is well.
"""
