"""`bot audit …`, and in its last words to stderr how many bytes it held at most."""

import resource
import sys

from bot.__main__ import main

if __name__ == "__main__":
    sys.argv = ["bot", "audit", *sys.argv[1:]]
    try:
        main()
    finally:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=sys.stderr)
