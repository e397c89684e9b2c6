"""What is typed: a module for each command."""
