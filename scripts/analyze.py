"""Write curves, confusions and a model card into a run."""

from dh_keras.commands.analyze import main

if __name__ == "__main__":
    main()
