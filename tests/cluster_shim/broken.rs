//! Replication that is cut in the middle: what had come by then must not make the next sync believe
//! that the rest was expunged.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::*;
use crate::interlock::slot_of;
use crate::pair::{DOVEADM, Pair, messages};

/// On each node.
const MESSAGES: usize = 3;
/// How many places the connection is cut at.
const CUTS: usize = 8;

/// Passes on what comes, both ways, until so many bytes went to the server; then `then` is done, and
/// says whether it goes on.
fn relay(
    listener: &TcpListener,
    to: SocketAddr,
    limit: usize,
    then: impl FnOnce() -> bool,
    passed: &AtomicUsize,
) {
    let (client, _) = listener.accept().expect("dsync connects");
    let server = TcpStream::connect(to).expect("the other node");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = std::io::copy(&mut &server, &mut &client);
            let _ = client.shutdown(Shutdown::Both);
        });
        let mut buffer = [0; 512];
        let (mut left, mut then) = (limit, Some(then));
        loop {
            if left == 0 {
                if !then.take().is_some_and(|then| then()) {
                    break;
                }
                left = usize::MAX;
            }
            let most = left.min(buffer.len());
            let Ok(count @ 1..) = (&client).read(&mut buffer[..most]) else {
                break;
            };
            if (&server).write_all(&buffer[..count]).is_err() {
                break;
            }
            left -= count;
            passed.fetch_add(count, Ordering::Relaxed);
        }
        for end in [&client, &server] {
            let _ = end.shutdown(Shutdown::Both);
        }
    });
}

/// One sync of a mailbox during which something is done after so many bytes; that says whether the
/// sync goes on. Gives how many bytes went through, and how the sync ended.
pub fn sync_through(
    pair: &Pair,
    mailbox: &str,
    limit: usize,
    then: impl FnOnce() -> bool + Send,
) -> (usize, Output) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let to = SocketAddr::new(pair.servers[1].imap_addr().ip(), DOVEADM);
    let passed = AtomicUsize::new(0);
    let output = std::thread::scope(|scope| {
        scope.spawn(|| relay(&listener, to, limit, then, &passed));
        let peer = format!("tcp:127.0.0.1:{port}");
        let words = ["sync", "-u", "alice", "-f", "-m", mailbox, &peer];
        pair.servers[0].doveadm(&words)
    });
    (passed.into_inner(), output)
}

/// The same, cut there.
fn sync_cut(pair: &Pair, mailbox: &str, limit: usize) -> usize {
    sync_through(pair, mailbox, limit, || false).0
}

/// A mailbox of that name with one message that both have, and then others on each, at the same
/// UIDs. Gives all GUIDs.
pub fn collide(pair: &Pair, mailbox: &str) -> BTreeSet<String> {
    let sync = ["-f", "-m", mailbox];
    pair.servers[0]
        .imap("alice")
        .ok(&format!("CREATE {mailbox}"));
    pair.servers[0].append("alice", mailbox, &message(1));
    pair.daemons[1].knows(&messages(&pair.servers[0], mailbox));
    pair.sync_ok(&sync);
    for (side, server) in pair.servers.iter().enumerate() {
        for n in 1..=MESSAGES {
            server.append("alice", mailbox, &message(1000 * (side + 1) + n));
        }
        // Since the table was made everything counts as promised.
        slot_of(server, mailbox).promise(1).expect("a promise");
    }
    pair.introduce(mailbox);
    guids(pair, mailbox)
}

/// What is on either of them.
fn guids(pair: &Pair, mailbox: &str) -> BTreeSet<String> {
    let all = pair
        .servers
        .iter()
        .flat_map(|server| messages(server, mailbox));
    all.map(|message| message.guid).collect()
}

#[test]
fn what_was_on_its_way_when_replication_broke_is_not_taken_for_expunged() {
    for format in [Format::Sdbox, Format::Maildir] {
        let pair = Pair::start(format);
        for server in &pair.servers {
            // It says that the connection was lost.
            server.allow_log("last sent=");
        }
        collide(&pair, "whole");
        let whole = sync_cut(&pair, "whole", usize::MAX);
        for cut in 1..=CUTS {
            let mailbox = format!("cut{cut}");
            let there = collide(&pair, &mailbox);
            sync_cut(&pair, &mailbox, whole - whole * cut / (CUTS + 1));
            // The other end may still be at it.
            until("a sync that goes well", || {
                pair.sync(&["-f", "-m", &mailbox]).code == 0
            });
            let both: Vec<_> = pair.same(&mailbox).into_iter().map(|m| m.guid).collect();
            let kept: BTreeSet<_> = both.iter().cloned().collect();
            assert_eq!(kept, there, "{format:?}: cut {cut} of {CUTS}");
            assert_eq!(both.len(), there.len(), "{format:?}: cut {cut} of {CUTS}");
        }
    }
}
