"""The command ``ciphermq``: one file a command, everything heavy imported when it runs."""
