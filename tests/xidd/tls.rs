//! xidd and xidctl with an etcd that wants certificates.

use std::path::Path;

use crate::daemon::{Daemon, Scene};
use crate::harness::etcd::Etcd;
use crate::harness::tls::{Authority, Issued};
use crate::harness::until;
use crate::operator::{text, xidctl};

/// Which of these it was, etcd does not always get to say.
const REFUSED: &str = "It may have expired, be missing, or be of another authority";

/// An etcd, whom it trusts, and a client that it trusts.
struct Site {
    etcd: Etcd,
    authority: Authority,
    client: Issued,
}

impl Site {
    fn new() -> Site {
        let authority = Authority::new("authority");
        let (server, client) = (authority.issue("etcd"), authority.issue("client"));
        Site {
            etcd: Etcd::start_with_tls(&server, &authority, &client),
            authority,
            client,
        }
    }

    fn config(&self, scene: &Scene, ca: &Path, client: Option<&Issued>) -> String {
        let mut text = format!("{}ca = {ca:?}\n", scene.with_etcd(&self.etcd));
        if let Some(Issued { cert, key }) = client {
            text.push_str(&format!("cert = {cert:?}\nkey = {key:?}\n"));
        }
        text
    }

    /// Both programs say what is wrong; the daemon goes on trying.
    fn refuses(&self, ca: &Path, client: Option<&Issued>, why: &str) {
        let scene = Scene::new();
        scene.write(&self.config(&scene, ca, client));
        let mut daemon = Daemon::start(&scene);
        daemon.told("READY=1");
        daemon.told("cut off");
        let explains = |said: &str| said.contains(why);
        until("the reason in the log", || explains(&daemon.log()));
        let asked = xidctl(&scene, &["members"]);
        assert_eq!(asked.status.code(), Some(1), "{asked:?}");
        let said = text(&asked.stderr);
        assert!(explains(&said), "{said}");
        assert!(
            said.contains("look at its endpoints, certificates"),
            "{said}"
        );
        println!("xidctl: {said}xidd: {}", daemon.log());
        assert!(daemon.stop(), "{}", daemon.log());
    }
}

#[test]
fn with_its_certificate_a_node_is_in_the_cluster() {
    let (site, scene) = (Site::new(), Scene::new());
    scene.write(&site.config(&scene, &site.authority.cert(), Some(&site.client)));
    let mut daemon = Daemon::start(&scene);
    daemon.told("in the cluster");
    let members = text(&xidctl(&scene, &["members"]).stdout);
    assert!(members.contains("alpha: node 1"), "{members}");
    assert!(daemon.stop(), "{}", daemon.log());
}

#[test]
fn an_etcd_that_somebody_else_signed_is_not_trusted() {
    let site = Site::new();
    let other = Authority::new("other");
    site.refuses(
        &other.cert(),
        Some(&site.client),
        "invalid peer certificate: UnknownIssuer",
    );
}

#[test]
fn without_a_certificate_etcd_lets_nobody_in() {
    let site = Site::new();
    site.refuses(&site.authority.cert(), None, REFUSED);
}

#[test]
fn a_certificate_that_somebody_else_signed_is_refused() {
    let site = Site::new();
    let other = Authority::new("other").issue("stranger-without-folder");
    // Its folder is gone with its authority: a file that is not there is said at once.
    let scene = Scene::new();
    scene.write(&site.config(&scene, &site.authority.cert(), Some(&other)));
    let mut daemon = Daemon::start(&scene);
    assert_eq!(daemon.exit_code(), Some(78));
    assert!(daemon.log().contains("cannot be read"), "{}", daemon.log());
    let authority = Authority::new("other");
    let stranger = authority.issue("stranger");
    site.refuses(&site.authority.cert(), Some(&stranger), REFUSED);
}

#[test]
fn an_expired_certificate_is_refused_until_a_new_one_is_in_its_place() {
    let site = Site::new();
    let expired = site.authority.issue_expired("expired");
    site.refuses(&site.authority.cert(), Some(&expired), REFUSED);
    let scene = Scene::new();
    scene.write(&site.config(&scene, &site.authority.cert(), Some(&expired)));
    let mut daemon = Daemon::start(&scene);
    daemon.told("cut off");
    for (new, old) in [
        (&site.client.key, &expired.key),
        (&site.client.cert, &expired.cert),
    ] {
        std::fs::rename(new, old).expect("the new one in its place");
    }
    daemon.told("in the cluster");
    assert!(daemon.stop(), "{}", daemon.log());
}

#[test]
fn an_etcd_whose_certificate_expired_is_not_trusted() {
    let authority = Authority::new("authority");
    let (server, client) = (authority.issue_expired("etcd"), authority.issue("client"));
    let site = Site {
        etcd: Etcd::start_with_tls(&server, &authority, &client),
        authority,
        client,
    };
    site.refuses(
        &site.authority.cert(),
        Some(&site.client),
        "invalid peer certificate: certificate expired",
    );
}
