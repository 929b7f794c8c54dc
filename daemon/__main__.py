"""`python -m daemon` is `recald`."""

import sys

from daemon.cli import main

sys.exit(main())
