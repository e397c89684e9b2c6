"""Train a detector; on generated shapes if no data is given."""

from dh_keras.commands.train import main

if __name__ == "__main__":
    main()
