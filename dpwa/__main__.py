"""`python -m dpwa` is the command `dpwa`. Knows only the command line; runs in the main thread."""

from dpwa.cli import main

if __name__ == "__main__":
    main()
