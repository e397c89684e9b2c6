"""Join the folders that predict --shard wrote."""

from dh_keras.commands.merge_predictions import main

if __name__ == "__main__":
    main()
