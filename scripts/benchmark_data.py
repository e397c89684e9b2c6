"""Measure the speed of reading and augmenting images."""

from dh_keras.commands.benchmark_data import main

if __name__ == "__main__":
    main()
