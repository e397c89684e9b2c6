"""Download published weights and make a run of them; without a name, list them."""

from dh_keras.commands.fetch import main

if __name__ == "__main__":
    main()
