"""Train variants with several seeds and compare them."""

from dh_keras.commands.compare import main

if __name__ == "__main__":
    main()
