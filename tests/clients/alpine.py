"""Alpine on a terminal of its own: every message of INBOX into OUT, one message into Sent.

Alpine reads no password from a file or a pipe, so its keys are pressed when it asks."""
import os
import pty
import re
import select
import sys
import time

host, port, user, out, message = sys.argv[1:]
home = os.environ["HOME"]
server = "{%s:%s/user=%s/notls}" % (host, port, user)
# Seconds: longer than any wait of the test.
LIMIT = 110

with open(os.path.join(home, "pinerc"), "w") as file:
    file.write(
        f"inbox-path={home}/empty\nnewmail-folder-name=\nlast-version-used=99.99\n"
        "personal-name=x\nuser-domain=example.com\nmail-check-interval=0\n"
        "feature-list=quit-without-confirm,save-will-not-delete,enable-aggregate-command-set,"
        "expunge-without-confirm-everywhere,no-signature-at-bottom\n"
    )


def plain(screen):
    """What is written on the screen, without what moves and colours it."""
    return re.sub(rb"\x1b[\[(][0-9;?]*[a-zA-Z]", b" ", screen)


def shown(screen):
    return plain(screen).decode(errors="replace")


def drive(folder, *steps):
    """Opens a folder; at each step waits for a text, then presses keys."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "vt100"
        command = ["alpine", "-i"]
        os.execvp("alpine", command + ["-p", home + "/pinerc", "-f", folder])
    screen = b""
    deadline = time.monotonic() + LIMIT
    steps = list(steps)
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 1)[0]:
            try:
                screen += os.read(terminal, 65536)
            except OSError:
                break
        found = steps and re.search(steps[0][0], plain(screen), re.DOTALL)
        if found:
            os.write(terminal, steps.pop(0)[1])
            screen = plain(screen)[found.end() :]
    else:
        sys.exit(f"alpine waits; the screen:\n{shown(screen)}")
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != 0 or steps:
        sys.exit(f"alpine ended with {status}, {len(steps)} steps to go:\n{shown(screen)}")


# Alpine asks before it makes a file.
open(os.path.join(out, "mbox"), "w").close()
PASSWORD = (rb"ENTER PASSWORD:", b"pass\r")
KEEP_IT = (rb"Preserve password", b"n")
drive(
    server + "INBOX",
    PASSWORD,
    KEEP_IT,
    (rb'}INBOX"[^"]*(opened with|DONE)', b";"),
    (rb"SELECT criteria", b"a"),
    (rb"messages selected", b"as"),
    (rb"SAVE.*folder", b"\x15" + os.path.join(out, "mbox").encode() + b"\r"),
    (rb"DONE|copied|messages saved", b"q"),
)

saved = os.path.join(home, "saved")
with open(message, "rb") as file, open(saved, "wb") as mbox:
    mbox.write(b"From sender Mon Nov 23 10:00:00 2026\n")
    mbox.write(file.read().replace(b"\r\n", b"\n") + b"\n")
drive(
    saved,
    (rb'saved"[^"]*(opened with|DONE)', b"s"),
    (rb"SAVE.*folder", b"\x15" + (server + "Sent").encode() + b"\r"),
    PASSWORD,
    KEEP_IT,
    (rb"DONE|copied|messages saved", b"q"),
)
