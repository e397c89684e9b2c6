"""Look for what is wrong with a COCO data set."""

from dh_keras.commands.inspect_data import main

if __name__ == "__main__":
    main()
