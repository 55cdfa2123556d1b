"""`python -m earwise`: the front door for launchers that start a module in several processes."""

from earwise.cli import main

if __name__ == "__main__":
    main()
