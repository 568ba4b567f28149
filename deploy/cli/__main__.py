"""`python -m deploy.cli`: the same as `steward`, for a process that starts itself again."""

from deploy.cli import main

main()
