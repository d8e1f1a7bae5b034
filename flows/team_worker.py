"""The worker of a team, as the first process of a container (`python -m flows.team_worker`): when it is told to end, so are the
runs below the worker, which by itself would leave them; and it waits until both servers have heard of it."""

from __future__ import annotations

import signal
import subprocess
import sys

from flows import working
from registry.home import make_home


def main() -> int:
    """Returns the exit status: of the worker, where that ended by itself."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    home = make_home()
    worker = subprocess.Popen([sys.executable, "-P", "-m", "flows.working"])
    try:
        return worker.wait()
    except KeyboardInterrupt:
        working.stop(home, worker)
        return 0


if __name__ == "__main__":
    sys.exit(main())
