"""Detect with a model on a running TensorFlow Serving."""

from dh_keras.commands.serve_client import main

if __name__ == "__main__":
    main()
