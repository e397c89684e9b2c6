"""Download published weights and make a run of them."""

from dh_keras.commands.fetch import main

if __name__ == "__main__":
    main()
