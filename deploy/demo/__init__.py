"""The demo: a seeded gateway, its own account of what it sent, and the page at the end."""
