"""How long a detector takes, how much of that is arithmetic it cannot do without, and how another one compares."""

# Other implementations to compare with: name on the command line and of the file here, and the package it is in.
PEERS = {"model_garden": "official", "mmdetection": "mmdet"}
