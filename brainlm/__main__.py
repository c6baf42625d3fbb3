"""``python -m brainlm`` is ``brainlm``."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
