"""`python -m moshi_ctl`."""

from moshi_ctl.cli import main

if __name__ == "__main__":
    main()
