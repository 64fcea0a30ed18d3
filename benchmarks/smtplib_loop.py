"""What one would write oneself: each mail of a spool sent over one connection, then removed.

``python -m benchmarks.smtplib_loop SPOOL PORT`` sends to PORT of 127.0.0.1.
"""

import smtplib
import sys
from pathlib import Path


def main(directory: Path, port: int) -> None:
    with smtplib.SMTP("127.0.0.1", port) as relay:
        for path in sorted(directory.iterdir()):
            recipient, sender, message = path.read_bytes().split(b"\n", 2)
            relay.sendmail(sender.decode().partition(":")[2], recipient.decode().partition(":")[2], message)
            path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
