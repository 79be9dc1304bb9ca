"""``python -m ciphermq``: the command line, wherever the script is not on the path."""

from ciphermq.cli.main import main

if __name__ == "__main__":
    main()
