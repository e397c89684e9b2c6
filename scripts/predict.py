"""Detect objects in photographs and videos, and draw them."""

from dh_keras.commands.predict import main

if __name__ == "__main__":
    main()
