"""`python -m earwise` runs the command line; launchers start it in several processes."""

from earwise.cli import main

if __name__ == "__main__":
    main()
