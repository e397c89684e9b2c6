"""`python -m dh_keras COMMAND ...` is `dh-keras COMMAND ...`."""

from dh_keras.commands.main import main

main()
