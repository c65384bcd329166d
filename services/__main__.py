"""`python -m stafett` is the `stafett` command."""

from stafett.cli.app import main

if __name__ == "__main__":
    main()
