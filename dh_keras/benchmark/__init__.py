"""How long a detector takes, how much of that is arithmetic it cannot do without, and how another one compares."""

# Other implementations to compare with: name on the command line, and experiment of the TensorFlow Model Garden.
PEERS = {"model_garden": "fasterrcnn_resnetfpn_coco"}
