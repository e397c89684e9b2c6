"""Export a run for TensorFlow Serving, or as an ONNX file."""

from dh_keras.commands.export import main

if __name__ == "__main__":
    main()
