"""Measure COCO average precision of a run or a SavedModel."""

from dh_keras.commands.evaluate import main

if __name__ == "__main__":
    main()
