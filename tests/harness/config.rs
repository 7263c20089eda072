//! What a test server is told to be.

use std::fmt::Write as _;
use std::path::Path;

use super::net::Net;
use super::server::Dovecot;

/// How mail is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Sdbox,
    Mdbox,
    Maildir,
}

impl Format {
    pub const ALL: [Format; 3] = [Format::Sdbox, Format::Mdbox, Format::Maildir];

    pub fn name(self) -> &'static str {
        match self {
            Format::Sdbox => "sdbox",
            Format::Mdbox => "mdbox",
            Format::Maildir => "maildir",
        }
    }
}

/// A server to be; [`Setup::start`] makes it.
#[derive(Clone)]
pub struct Setup {
    pub(super) format: Format,
    pub(super) plugin: bool,
    pub(super) xid: Vec<(String, String)>,
    pub(super) top: Vec<(String, String)>,
    pub(super) extra: String,
    pub(super) tls: bool,
    pub(super) hibernate: Option<String>,
    pub(super) mail_plugins: String,
    pub(super) location: String,
    pub(super) tmpfs: Option<String>,
    pub(super) node: Option<Node>,
}

/// A place in a [`Net`]: its namespace and its address.
#[derive(Clone)]
pub(super) struct Node {
    pub namespace: String,
    pub address: std::net::Ipv4Addr,
}

impl Setup {
    pub(super) fn new() -> Setup {
        Setup {
            format: Format::Sdbox,
            plugin: true,
            xid: vec![("xid_namespace".into(), "foo".into())],
            top: Vec::new(),
            extra: String::new(),
            tls: false,
            hibernate: None,
            mail_plugins: "zlib".into(),
            location: String::new(),
            tmpfs: None,
            node: None,
        }
    }

    pub fn format(mut self, format: Format) -> Setup {
        self.format = format;
        self
    }

    /// Whether `xid` is among the mail_plugins.
    pub fn plugin(mut self, on: bool) -> Setup {
        self.plugin = on;
        self
    }

    /// A setting inside `plugin { }`; an earlier one of the same name is replaced.
    pub fn xid(mut self, key: &str, value: &str) -> Setup {
        put(&mut self.xid, key, value);
        self
    }

    /// A setting at the top level.
    pub fn set(mut self, key: &str, value: &str) -> Setup {
        put(&mut self.top, key, value);
        self
    }

    /// Lines put at the end of the configuration as they are, but `@TREE@` is the server's folder.
    pub fn conf(mut self, lines: &str) -> Setup {
        self.extra.push_str(lines);
        self.extra.push('\n');
        self
    }

    /// Serve imaps and STARTTLS with a certificate of our own.
    pub fn tls(mut self) -> Setup {
        self.tls = true;
        self
    }

    /// Idling clients move into imap-hibernate after this time ("1s").
    pub fn hibernate(mut self, after: &str) -> Setup {
        self.hibernate = Some(after.into());
        self
    }

    /// The plug-ins besides xid; "zlib" (which COMPRESS needs) by default.
    pub fn mail_plugins(mut self, names: &str) -> Setup {
        self.mail_plugins = names.into();
        self
    }

    /// Added to mail_location, as ":INDEX=~/index".
    pub fn location(mut self, suffix: &str) -> Setup {
        self.location = suffix.into();
        self
    }

    /// The users' homes are on a tmpfs of this size ("8m").
    pub fn tmpfs(mut self, size: &str) -> Setup {
        self.tmpfs = Some(size.into());
        self
    }

    /// The server runs on a node of a lab, with the standard ports.
    pub fn at(mut self, net: &Net, node: usize) -> Setup {
        self.node = Some(Node {
            namespace: net.name(node),
            address: net.ip(node),
        });
        self
    }

    /// Starts the server and waits until it serves.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(self) -> Dovecot {
        Dovecot::start_with(self)
    }

    /// The text of dovecot.conf.
    pub(super) fn text(&self, place: &Place) -> String {
        let mut conf = String::new();
        self.basics(&mut conf, place);
        self.storage(&mut conf, place);
        self.plugins(&mut conf, place);
        self.services(&mut conf, place);
        for (key, value) in &self.top {
            let _ = writeln!(conf, "{key} = {value}");
        }
        conf.push_str(&self.extra.replace("@TREE@", &place.tree.to_string_lossy()));
        conf
    }

    fn basics(&self, conf: &mut String, place: &Place) {
        let tree = place.tree.display();
        let _ = write!(
            conf,
            "base_dir = {tree}/run\nstate_dir = {tree}/state\nlog_path = {tree}/dovecot.log\n\
             protocols = imap lmtp pop3\nlisten = {}\n\
             disable_plaintext_auth = no\nauth_mechanisms = plain\n\
             first_valid_uid = 1\nmail_max_userip_connections = 10000\n\
             passdb {{\n  driver = static\n  args = nopassword=y\n}}\n\
             userdb {{\n  driver = static\n  args = uid={uid} gid={gid} home={tree}/home/%u\n}}\n\
             postmaster_address = postmaster@example.org\nhostname = test.example.org\n",
            place.address,
            uid = place.uid,
            gid = place.gid,
        );
        if self.tls {
            let _ = write!(
                conf,
                "ssl = yes\nssl_cert = <{tree}/cert.pem\nssl_key = <{tree}/key.pem\n"
            );
        } else {
            conf.push_str("ssl = no\n");
        }
        if let Some(after) = &self.hibernate {
            let _ = writeln!(conf, "imap_hibernate_timeout = {after}");
        }
    }

    fn storage(&self, conf: &mut String, _place: &Place) {
        let _ = write!(
            conf,
            "mail_location = {}:~/mail{}\nnamespace inbox {{\n  inbox = yes\n  separator = /\n}}\n\
             recipient_delimiter = +\nlmtp_save_to_detail_mailbox = yes\n\
             lda_mailbox_autocreate = yes\n",
            self.format.name(),
            self.location
        );
    }

    fn plugins(&self, conf: &mut String, place: &Place) {
        let mut plugins = self.mail_plugins.clone();
        if self.plugin {
            let _ = writeln!(conf, "mail_plugin_dir = {}", place.modules.display());
            plugins.push_str(" xid");
        }
        let zlib = if self.mail_plugins.contains("zlib") {
            " imap_zlib"
        } else {
            ""
        };
        let sieve = if place.sieve { " sieve" } else { "" };
        let _ = write!(
            conf,
            "mail_plugins = {plugins}\n\
             protocol imap {{\n  mail_plugins = {plugins}{zlib}\n}}\n\
             protocol lmtp {{\n  mail_plugins = {plugins}{sieve}\n}}\n\
             protocol lda {{\n  mail_plugins = {plugins}{sieve}\n}}\n\
             plugin {{\n  sieve = file:~/sieve;active=~/.dovecot.sieve\n"
        );
        if self.plugin {
            for (key, value) in &self.xid {
                let _ = writeln!(conf, "  {key} = {value}");
            }
        }
        conf.push_str("}\n");
    }

    fn services(&self, conf: &mut String, place: &Place) {
        let imaps = if self.tls { place.imaps } else { 0 };
        let _ = write!(
            conf,
            "service imap-login {{\n  service_count = 0\n  client_limit = 2500\n\
             \x20 process_limit = 2\n\
             \x20 inet_listener imap {{\n    port = {imap}\n  }}\n\
             \x20 inet_listener imaps {{\n    port = {imaps}\n    ssl = yes\n  }}\n}}\n\
             service pop3-login {{\n  inet_listener pop3 {{\n    port = {pop3}\n  }}\n\
             \x20 inet_listener pop3s {{\n    port = 0\n  }}\n}}\n\
             service lmtp {{\n  inet_listener lmtp {{\n    port = {lmtp}\n  }}\n}}\n\
             service imap {{\n  process_limit = 2000\n\
             \x20 unix_listener imap-master {{\n    user = $default_internal_user\n  }}\n}}\n\
             service imap-hibernate {{\n  unix_listener imap-hibernate {{\n    mode = 0666\n  }}\n}}\n\
             service auth {{\n  client_limit = 9000\n}}\n\
             service anvil {{\n  client_limit = 9000\n}}\n",
            imap = place.imap,
            pop3 = place.pop3,
            lmtp = place.lmtp,
        );
    }
}

/// Where a server is: its folders, its address and ports, the account that owns the mail.
pub(super) struct Place {
    pub tree: std::path::PathBuf,
    pub modules: std::path::PathBuf,
    pub address: std::net::Ipv4Addr,
    pub imap: u16,
    pub imaps: u16,
    pub lmtp: u16,
    pub pop3: u16,
    pub uid: u32,
    pub gid: u32,
    pub sieve: bool,
}

/// Whether Debian's dovecot-sieve is installed.
pub(super) fn sieve_installed() -> bool {
    Path::new("/usr/lib/dovecot/modules/lib90_sieve_plugin.so").exists()
}

pub(super) fn put(list: &mut Vec<(String, String)>, key: &str, value: &str) {
    list.retain(|(k, _)| k != key);
    list.push((key.into(), value.into()));
}
