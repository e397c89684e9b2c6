"""What can be set: the schema, how a file and overrides become a config, and which values cannot work."""
