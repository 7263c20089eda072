"""Evolution's mail engine, Camel: every message of INBOX into OUT, one message into Sent."""
import os
import sys
import threading

import gi

gi.require_version("Camel", "1.2")
from gi.repository import Camel, Gio, GLib

host, port, user, out, message = sys.argv[1:]
state = os.path.join(os.environ["HOME"], "camel")


class Session(Camel.Session):
    """What Evolution's own session does when it has the password already."""

    def do_authenticate_sync(self, service, mechanism, cancellable):
        service.set_password("pass")
        result = service.authenticate_sync(mechanism, cancellable)
        return result == Camel.AuthenticationResult.ACCEPTED

    def do_get_filter_driver(self, kind, folder):
        return None


# Camel does its work in threads and reports to the main loop.
loop = GLib.MainLoop()
threading.Thread(target=loop.run, daemon=True).start()

Camel.init(state, False)
Camel.Provider.init()
session = Session(user_data_dir=state, user_cache_dir=state, online=True)
session.set_online(True)
store = session.add_service("account", "imapx", Camel.ProviderType.STORE)
settings = store.ref_settings()
for name, value in {
    "host": host,
    "port": int(port),
    "user": user,
    "auth-mechanism": "PLAIN",
    "security-method": Camel.NetworkSecurityMethod.NONE,
    "use-idle": False,
    "use-subscriptions": False,
}.items():
    settings.set_property(name, value)
store.set_online_sync(True, None)
store.connect_sync(None)
# Camel knows no folder that it has not seen in a list.
store.get_folder_info_sync(None, Camel.StoreGetFolderInfoFlags.RECURSIVE, None)

inbox = store.get_folder_sync("INBOX", 0, None)
inbox.refresh_info_sync(None)
for uid in inbox.get_uids():
    mail = inbox.get_message_sync(uid, None)
    file = Gio.File.new_for_path(os.path.join(out, uid)).replace(
        None, False, Gio.FileCreateFlags.NONE, None
    )
    mail.write_to_output_stream_sync(file, None)
    file.close(None)

mail = Camel.MimeMessage()
mail.construct_from_input_stream_sync(Gio.File.new_for_path(message).read(None), None)
sent = store.get_folder_sync("Sent", 0, None)
sent.append_message_sync(mail, Camel.MessageInfo.new(None), None)
sent.synchronize_sync(False, None)
store.disconnect_sync(True, None)
