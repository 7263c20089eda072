"""Thunderbird under Xvfb: every message of INBOX into its offline store, which is copied to OUT, and
one message into Sent.

It is driven through Marionette, the door that Mozilla's own tests use; what it says to the server is
what it says when a person clicks. A profile is prepared, so that no wizard comes and nothing but the
server is connected to."""
import ctypes
import glob
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

host, port, user, out, message = sys.argv[1:]
home = os.environ["HOME"]
profile = os.path.join(home, "profile")
# Longer than any wait of the test, shorter than what the test gives a client.
DEADLINE = time.monotonic() + 100
MESSAGES = 5
PR_SET_PDEATHSIG = 1

PREFS = {
    "mail.accountmanager.accounts": "account1,account2",
    "mail.accountmanager.defaultaccount": "account1",
    "mail.accountmanager.localfoldersserver": "server2",
    "mail.account.account1.server": "server1",
    "mail.account.account1.identities": "id1",
    "mail.account.account2.server": "server2",
    "mail.identity.id1.useremail": user + "@example.org",
    "mail.identity.id1.fullName": user,
    "mail.identity.id1.valid": True,
    "mail.server.server1.type": "imap",
    "mail.server.server1.hostname": host,
    "mail.server.server1.port": int(port),
    "mail.server.server1.userName": user,
    "mail.server.server1.name": user,
    # Neither TLS nor anything but a plain password.
    "mail.server.server1.socketType": 0,
    "mail.server.server1.authMethod": 3,
    # What a new account of Thunderbird's has: everything is kept for use offline. When, we say: by
    # itself it waits until the machine has been idle for a while.
    "mail.server.server1.offline_download": True,
    "mail.server.server1.autosync_offline_stores": False,
    "mail.server.server1.using_subscription": False,
    # It begins when it is told to, once the password is there.
    "mail.server.server1.login_at_startup": False,
    "mail.server.server1.check_new_mail": False,
    "mail.server.server2.type": "none",
    "mail.server.server2.hostname": "Local Folders",
    "mail.server.server2.userName": "nobody",
    "mail.server.server2.name": "Local Folders",
    "mail.provider.enabled": False,
    "mail.shell.checkDefaultClient": False,
    "mail.winsearch.firstRunDone": True,
    "mailnews.start_page.enabled": False,
    "mailnews.start_page_override.mstone": "ignore",
    "mail.spotlight.firstRunDone": True,
    "app.donation.eoy.version.viewed": 999,
    "app.update.enabled": False,
    "datareporting.healthreport.uploadEnabled": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "datareporting.policy.dataSubmissionPolicyBypassNotification": True,
    "toolkit.telemetry.enabled": False,
    "extensions.update.enabled": False,
    "extensions.getAddons.cache.enabled": False,
    "services.settings.server": "data:,#remote-settings-dummy/v1",
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    # Whatever else would leave the machine finds a proxy that is not there.
    "network.proxy.type": 1,
    "network.proxy.http": "127.0.0.1",
    "network.proxy.http_port": 9,
    "network.proxy.ssl": "127.0.0.1",
    "network.proxy.ssl_port": 9,
    "network.proxy.no_proxies_on": host,
    # A free port; Thunderbird writes down which.
    "marionette.port": 0,
}

# Stores the password, saves a message into Sent, and has INBOX downloaded; done when all of it is
# there. `arguments` are the user's name, the server, the message's path, the count of messages.
SCRIPT = """
const [user, host, path, count, done] = arguments;
const { MailServices } = ChromeUtils.importESModule(
  "resource:///modules/MailServices.sys.mjs");
const pause = ms => new Promise(resolve => window.setTimeout(resolve, ms));

function saveInto(folder) {
  const file = Cc["@mozilla.org/file/local;1"].createInstance(Ci.nsIFile);
  file.initWithPath(path);
  return new Promise((resolve, reject) => MailServices.copy.copyFileMessage(
    file, folder, null, false, Ci.nsMsgMessageFlags.Read, "", {
      QueryInterface: ChromeUtils.generateQI(["nsIMsgCopyServiceListener"]),
      onStartCopy() {}, onProgress() {}, setMessageKey() {}, getMessageId() { return null; },
      onStopCopy(status) {
        Components.isSuccessCode(status) ? resolve() : reject(`saving: ${status.toString(16)}`);
      },
    }, null));
}

// Runs what takes a listener, and waits until it is over.
function over(begin) {
  return new Promise((resolve, reject) => begin({
    QueryInterface: ChromeUtils.generateQI(["nsIUrlListener"]),
    OnStartRunningUrl() {},
    OnStopRunningUrl(url, status) {
      Components.isSuccessCode(status) ? resolve() : reject(`${url?.spec}: ${status.toString(16)}`);
    },
  }));
}

async function found(root, name) {
  for (;;) {
    const folder = root.subFolders.find(f => f.name.toLowerCase() == name);
    if (folder) {
      return folder.QueryInterface(Ci.nsIMsgImapMailFolder);
    }
    await pause(100);
  }
}

function keptOffline(folder) {
  return [...folder.messages].filter(m => m.flags & Ci.nsMsgMessageFlags.Offline).length;
}

(async () => {
  const login = Cc["@mozilla.org/login-manager/loginInfo;1"].createInstance(Ci.nsILoginInfo);
  login.init(`imap://${host}`, null, `imap://${host}`, user, "pass", "", "");
  await Services.logins.addLoginAsync(login);
  const root = MailServices.accounts.findServer(user, host, "imap").rootFolder;
  const inbox = await found(root, "inbox");
  inbox.setFlag(Ci.nsMsgFolderFlags.Offline);
  // The first connection of all finds the folders.
  const updating = over(listener => inbox.updateFolderWithListener(window.msgWindow, listener));
  window.saving = found(root, "sent").then(saveInto);
  await Promise.all([window.saving, updating]);
  while (keptOffline(inbox) < count) {
    await over(listener => inbox.downloadAllForOffline(listener, window.msgWindow));
    await pause(200);
  }
  done("done");
})().catch(e => done(String(e)));
"""


def left():
    """Seconds until our time is over."""
    return max(DEADLINE - time.monotonic(), 1)


# After an alert of Thunderbird's, which ends the other script.
SAVING = """
const done = arguments[0];
window.saving.then(() => done("done"), () => done("done"));
"""


class Marionette:
    """The protocol: JSON with its length before it."""

    def __init__(self, at):
        self.socket = socket.create_connection(("127.0.0.1", at))
        self.socket.settimeout(left() + 5)
        self.data = b""
        self.id = 0
        self.receive()

    def receive(self):
        while b":" not in self.data:
            self.more()
        size, self.data = self.data.split(b":", 1)
        while len(self.data) < int(size):
            self.more()
        packet, self.data = self.data[: int(size)], self.data[int(size) :]
        return json.loads(packet)

    def more(self):
        data = self.socket.recv(65536)
        if not data:
            sys.exit("Thunderbird closed the connection")
        self.data += data

    def do(self, command, **arguments):
        self.id += 1
        packet = json.dumps([0, self.id, command, arguments]).encode()
        self.socket.sendall(b"%d:%s" % (len(packet), packet))
        _, _, error, result = self.receive()
        if error:
            raise RuntimeError(f"{command}: {error}")
        return result

    def run(self, script, *arguments):
        """The script's value; None when an alert ended it."""
        return self.do(
            "WebDriver:ExecuteAsyncScript", script=script, args=arguments, sandbox="system"
        )["value"]


def until(what, condition):
    while time.monotonic() < DEADLINE:
        result = condition()
        if result:
            return result
        time.sleep(0.05)
    sys.exit(f"waited for {what}")


def read(path):
    try:
        with open(path) as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def drive():
    active = os.path.join(profile, "MarionetteActivePort")
    client = Marionette(int(until("Thunderbird to start", lambda: read(active))))
    client.do("WebDriver:NewSession")
    client.do("Marionette:SetContext", value="chrome")
    client.do("WebDriver:SetTimeouts", script=int(left() * 1000))
    value = client.run(SCRIPT, user, host, message, MESSAGES)
    alert = value is None
    while value is None:
        client.do("WebDriver:DismissAlert")
        value = client.run(SAVING)
    if value != "done":
        sys.exit(f"Thunderbird: {value}")
    # Only when it ends is all of it surely in the files.
    client.do("Marionette:Quit", flags=["eAttemptQuit"])
    return not alert


os.makedirs(profile, exist_ok=True)
with open(os.path.join(profile, "user.js"), "w") as file:
    for name, value in PREFS.items():
        file.write(f"user_pref({json.dumps(name)}, {json.dumps(value)});\n")

def start(command, **how):
    """A program that ends when we do, whatever ends us."""
    libc = ctypes.CDLL(None)
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        **how,
    )


number, numbers = os.pipe()
screen = ["-screen", "0", "1024x768x24", "-nolisten", "tcp"]
running = [start(["Xvfb", "-displayfd", str(numbers)] + screen, pass_fds=[numbers])]
os.close(numbers)
try:
    display = ":" + os.read(number, 16).decode().strip()
    door = ["--marionette", "--remote-allow-system-access"]
    running.append(
        start(
            ["thunderbird", "--profile", profile, "--no-remote"] + door,
            env=dict(os.environ, DISPLAY=display, MOZ_CRASHREPORTER_DISABLE="1"),
        )
    )
    content = drive()
    running[-1].wait(left())
finally:
    for process in running:
        process.kill()
        process.wait()
stores = glob.glob(os.path.join(profile, "ImapMail", "*", "INBOX"))
for index, store in enumerate(stores):
    shutil.copy(store, os.path.join(out, f"inbox{index}"))
if not content:
    sys.exit("Thunderbird showed an alert")
