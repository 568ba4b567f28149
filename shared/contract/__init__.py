"""The contract: every event and topic, the only thing that the platform and the analysts depend on."""
