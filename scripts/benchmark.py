"""Measure the speed of inference, training or serving."""

from dh_keras.commands.benchmark import main

if __name__ == "__main__":
    main()
