"""Write annotations and images as TFRecord files."""

from dh_keras.commands.make_tfrecords import main

if __name__ == "__main__":
    main()
