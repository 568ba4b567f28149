"""Everything that checks the tree: lint, unit, integration, faults; bench measures it."""
