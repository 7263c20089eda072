//! doveadm's own sync with a node that does not answer: it ends, and so does a server that is
//! stopped meanwhile.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

use crate::client::Doveadm;
use crate::harness::*;
use crate::state::USER;

/// Longer than a sync may take that nobody answers.
const LIMIT_OF_ANSWER: std::time::Duration = std::time::Duration::from_secs(30);

/// Begins a sync with whoever listens there.
fn sync(server: &Dovecot, peer: &TcpListener) -> Doveadm {
    let mut doveadm = Doveadm::unix(&server.doveadm_socket());
    let peer = format!("tcp:{}", peer.local_addr().expect("an address"));
    doveadm.start(USER, "sync", &["-T", "5", &peer]);
    doveadm
}

/// As a doveadm server would, up to the command, which is never answered.
fn greet(peer: &TcpListener) -> (TcpStream, String) {
    let (stream, _) = peer.accept().expect("a connection");
    stream.set_read_timeout(Some(LIMIT)).expect("a limit");
    let mut lines = BufReader::new(stream.try_clone().expect("a second handle"));
    let mut line = String::new();
    lines.read_line(&mut line).expect("the version");
    (&stream)
        .write_all(b"VERSION\tdoveadm-client\t1\t1\n+\n")
        .expect("the greeting");
    while !line.contains("dsync-server") {
        line.clear();
        let read = lines.read_line(&mut line).expect("the command");
        assert!(read > 0, "the connection ended before the command");
    }
    (stream, line)
}

/// What the sync said when it gave up.
fn insist_on_an_end(server: &Dovecot, mut doveadm: Doveadm) {
    let reply = doveadm.finish().expect("an answer");
    assert_ne!(reply.failed, "", "{reply:?}");
    // The log service hears of it by another way.
    until("the log to say why", || {
        server.log().contains("no answer within 30 seconds")
    });
}

/// A server that has begun a sync with a peer that says nothing.
fn begun() -> (Dovecot, TcpListener, Doveadm) {
    let server = Dovecot::setup().start();
    server.allow_log("no answer within 30 seconds");
    let peer = TcpListener::bind("127.0.0.1:0").expect("a port");
    let doveadm = sync(&server, &peer);
    (server, peer, doveadm)
}

#[test]
fn a_sync_ends_whose_peer_does_not_take_the_connection() {
    let (server, _peer, doveadm) = begun();
    insist_on_an_end(&server, doveadm);
}

#[test]
fn a_sync_ends_whose_peer_does_not_answer_the_command() {
    let (server, peer, doveadm) = begun();
    let _kept = greet(&peer);
    insist_on_an_end(&server, doveadm);
}

#[test]
fn a_server_can_be_stopped_while_its_peer_does_not_answer() {
    let (server, peer, doveadm) = begun();
    let kept = greet(&peer);
    // Waits until every process is gone, for longer than the sync may take.
    assert!(LIMIT > LIMIT_OF_ANSWER);
    drop(server);
    drop((kept, doveadm));
}
