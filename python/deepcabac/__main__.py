"""``python -m deepcabac`` is the command ``deepcabac``."""

from .cli import main

if __name__ == "__main__":
    main()
