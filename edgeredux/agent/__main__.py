"""Commands of the agent on the device: start, wait, stop (one line of JSON each) and what `start` starts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edgeredux.agent import process


def main(arguments: list[str]) -> int:
    """Exit code 0; what went wrong with a job is in its result."""
    command, job, more = arguments[0], Path(arguments[1]).expanduser(), arguments[2:]
    if command == "start":
        answer = process.start(job)
    elif command == "wait":
        answer = process.wait(job, float(more[0]))
    elif command == "stop":
        answer = process.stop(job)
    else:
        from edgeredux.agent import work

        if command == "supervise":
            work.supervise(job)
        elif command == "alone":
            return work.child(job, "alone-" + more[0], lambda: work.alone(job, more[0]))
        elif command == "together":
            return work.child(job, "together", lambda: work.together(job))
        elif command == "answers":
            return work.child(job, "answers-" + more[0], lambda: work.answers(job, more[0]))
        return 0
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
