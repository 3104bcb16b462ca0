"""`python -m dpwa` is the command `dpwa`. Runs in: the main thread."""

from dpwa.cli import main

if __name__ == "__main__":
    main()
