"""Convert the authors' or MMDetection's weights to a run."""

from dh_keras.commands.convert_checkpoint import main

if __name__ == "__main__":
    main()
