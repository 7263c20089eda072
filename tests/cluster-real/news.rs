//! XHXID with a state that goes from node to node: nothing is missed.

use crate::harness::cluster::Cluster;
use crate::workload::{Observer, conclude};
use crate::{PAUSE, judge, observers};

/// Rounds in which somebody writes on every node, and the client asks on another.
const ROUNDS: usize = 12;

/// The traveller asks for news on one node after the other, while each node is written to.
fn travel<'a>(
    cluster: &'a Cluster,
    writers: &mut [Observer<'a>],
    traveller: &mut Observer<'a>,
    from: usize,
) {
    for round in 0..ROUNDS {
        for (index, writer) in writers.iter_mut().enumerate() {
            let _ = writer.append(from + 10 * round + index);
        }
        let node = 1 + round % cluster.nodes();
        traveller.move_to(cluster.node(node), node);
        let _ = traveller.ask_news();
        std::thread::sleep(PAUSE);
    }
}

#[test]
fn a_state_saved_on_one_node_misses_nothing_on_another() {
    let cluster = Cluster::setup().nodes(3).start();
    let mut writers = observers(&cluster);
    let mut traveller = Observer::new(cluster.node(1), 1, true);
    travel(&cluster, &mut writers, &mut traveller, 0);

    cluster.net.isolate(2).expect("a partition");
    travel(&cluster, &mut writers, &mut traveller, 1000);
    // The others go on without node 2.
    std::thread::sleep(std::time::Duration::from_secs(5));
    travel(&cluster, &mut writers, &mut traveller, 2000);

    cluster.heal();
    travel(&cluster, &mut writers, &mut traveller, 3000);
    let mut history = conclude(&mut writers);
    for node in 1..=cluster.nodes() {
        traveller.move_to(cluster.node(node), node);
        let asked = traveller.ask_news();
        assert!(asked.is_ok(), "node {node}: {asked:?}");
        assert!(traveller.state().is_some());
    }
    history.extend(conclude(&mut [traveller]));
    judge("a travelling state", &history, 4 * ROUNDS * cluster.nodes());
}
