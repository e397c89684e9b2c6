"""What can be set: the schema, how a file and overrides become a config, and which values cannot work."""

from dh_keras.config.load import load_config as load_config
