"""Show what a model finds, in a page in the browser."""

from dh_keras.commands.demo import main

if __name__ == "__main__":
    main()
