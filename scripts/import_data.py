"""Make COCO JSON of what another tool wrote, and split it."""

from dh_keras.commands.import_data import main

if __name__ == "__main__":
    main()
