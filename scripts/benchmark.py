"""Measure the speed of inference or of a training step."""

from dh_keras.commands.benchmark import main

if __name__ == "__main__":
    main()
