"""``python -m maildrop CONFIG`` is the daemon."""

import sys

from maildrop.daemon import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
