"""``python -m trompe`` is ``trompe``."""

from trompe.cli import main

if __name__ == "__main__":
    main()
