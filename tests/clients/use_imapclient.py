"""IMAPClient: every message of INBOX into OUT, one message into Sent."""
import os
import sys

from imapclient import IMAPClient

host, port, user, out, message = sys.argv[1:]
client = IMAPClient(host, port=int(port), ssl=False, timeout=120)
client.login(user, "pass")
client.select_folder("INBOX", readonly=True)
uids = client.search("ALL")
for uid, data in client.fetch(uids, ["BODY.PEEK[]"]).items():
    with open(os.path.join(out, str(uid)), "wb") as file:
        file.write(data[b"BODY[]"])
with open(message, "rb") as file:
    client.append("Sent", file.read())
client.logout()
