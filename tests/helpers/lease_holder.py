"""A command that holds a folder and writes to it: its path, name and heartbeat in seconds are the arguments."""

import os
import sys
import time

from distil_ray.errors import InputError
from distil_ray.runs import lease
from distil_ray.runs.storage import RunFolder


def say(text: str) -> None:
    print(text, flush=True)


def main(path: str, command: str, heartbeat: float) -> None:
    lease.HEARTBEAT_SECONDS, lease.EXPIRES_SECONDS = heartbeat, 6 * heartbeat
    lease._POLL_SECONDS = heartbeat / 4
    if machine := os.environ.get("TEST_MACHINE"):  # as if this process ran elsewhere
        lease._machine = lambda: machine
    folder = RunFolder.at(path)
    try:
        with lease.holding(folder, command, say) as claim:
            guarded = claim.guard(folder)
            say("held")
            for number in range(10**9):
                if folder.exists("end"):
                    break
                guarded.write_text("writer.txt", f"{command} {number}")
                time.sleep(heartbeat / 10)
    except InputError as error:
        say(f"refused: {error}")
    except lease.LeaseLostError as error:
        say(f"lost: {error}")
    else:
        say("released")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
