//! Tests of what the cluster tests rest on: the network lab, the history checker, and what
//! stock servers do when they replicate both ways.

mod checker;
#[path = "../harness/mod.rs"]
mod harness;
mod history;
mod stock;
mod workload;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use harness::Format;
use harness::net::Net;

/// Whether a byte sent from one node reaches the other within a second.
fn reaches(net: &Net, from: usize, to: usize) -> bool {
    let listener = net
        .inside(to, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))
        .and_then(|bound| bound)
        .expect("a listener in the namespace");
    let port = listener.local_addr().expect("a bound address").port();
    let address = std::net::SocketAddr::from((net.ip(to), port));
    let second = std::time::Duration::from_secs(1);
    let dialled = net
        .inside(from, move || {
            std::net::TcpStream::connect_timeout(&address, second)
        })
        .expect("a thread in the namespace");
    let Ok(mut client) = dialled else {
        return false;
    };
    let (mut server, _) = listener
        .accept()
        .expect("the connection that was just made");
    client.write_all(b"x").expect("a byte sent");
    let mut byte = [0];
    server.read_exact(&mut byte).is_ok()
}

#[test]
fn nodes_reach_each_other_until_they_are_cut_and_again_when_healed() {
    let net = Net::new(3).expect("namespaces (needs root)");
    assert!(reaches(&net, 1, 2) && reaches(&net, 3, 1));
    net.partition(&[1], &[2, 3]).expect("a partition");
    assert!(!reaches(&net, 1, 2) && !reaches(&net, 2, 1) && reaches(&net, 2, 3));
    net.heal().expect("a heal");
    assert!(reaches(&net, 1, 2) && reaches(&net, 2, 1));
}

#[test]
fn on_a_slow_link_there_and_back_takes_twice_the_delay() {
    let delay = Duration::from_millis(30);
    let net = Net::slow(2, delay).expect("namespaces and TAP devices (needs root)");
    let start = Instant::now();
    assert!(reaches(&net, 1, 2));
    assert!(start.elapsed() >= 2 * delay, "{:?}", start.elapsed());
    net.set_delay(Duration::ZERO, Duration::from_millis(1));
    assert!(reaches(&net, 2, 1));
    net.partition(&[1], &[2]).expect("a partition");
    assert!(!reaches(&net, 1, 2));
}

#[test]
fn a_stock_pair_changes_uids_that_clients_saw() {
    let pause = Duration::from_millis(20);
    let history = stock::pair_written_by_turns(Format::Sdbox, 40, pause);
    let count = history.count();
    println!("stock: {count}");
    assert!(
        count.changed > 0,
        "the lab sees what dsync is known to do: {count}"
    );
    assert!(history.violations().iter().any(|v| v.invariant == "I1"));
}
