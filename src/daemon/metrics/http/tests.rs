use super::super::Metrics;
use super::*;
use crate::cluster::Step;

/// Generous: for a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

fn with_server<F: Future<Output = ()>>(test: impl FnOnce(SocketAddr, Arc<Metrics>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("tokio");
    let metrics = Arc::new(Metrics::default());
    runtime.block_on(async {
        let any = "127.0.0.1:0".parse().expect("an address");
        let server = Server::bind(any).await.expect("a free port");
        let address = server.address().expect("bound");
        tokio::spawn(serve(server, metrics.registry("alpha")));
        tokio::time::timeout(PATIENCE, test(address, metrics))
            .await
            .expect("in time");
    });
}

async fn ask(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(request).await.expect("sent");
    stream.shutdown().await.expect("half closed");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("an answer");
    String::from_utf8(answer).expect("text")
}

#[test]
fn a_scrape_shows_what_was_counted() {
    with_server(|address, metrics| async move {
        metrics.member.set(1);
        metrics.advances.inc();
        metrics.step::<(), ()>(&Step::Promise { end: 1 });
        metrics.sync_seconds.observe(0.2);
        metrics.refused("uid");
        let answer = ask(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        for line in [
            "Content-Type: application/openmetrics-text; version=1.0.0",
            "xidd_build_info{version=",
            "node=\"alpha\"",
            "xidd_member 1",
            "xidd_lag_seconds 0",
            "xidd_pending_uids 0",
            "xidd_advances_total 1",
            "xidd_gates_total 0",
            "xidd_evictions_total 0",
            "xidd_joins_total 0",
            "xidd_interlock_refusals_total 0",
            "xidd_syncs_total 0",
            "xidd_sync_failures_total 0",
            "xidd_sync_seconds_bucket{le=\"0.25\"} 1",
            "xidd_etcd_failures_total 0",
            "xidd_steps_total{step=\"promise\"} 1",
            "xidd_refusals_total{reason=\"uid\"} 1",
            "# EOF\n",
        ] {
            // A name begins its line.
            let line = match line.starts_with("xidd_") {
                true => format!("\n{line}"),
                false => line.to_owned(),
            };
            assert!(answer.contains(&line), "{line} is not in\n{answer}");
        }
        let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
    });
}

#[test]
fn what_is_no_scrape_gets_an_error() {
    with_server(|address, _| async move {
        let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(70_000));
        for (request, status) in [
            ("GET / HTTP/1.1\r\n\r\n", "404 "),
            ("GET /metricsx HTTP/1.1\r\n\r\n", "404 "),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405 "),
            ("GET /metrics\r\n\r\n", "400 "),
            ("GET  /metrics HTTP/1.1\r\n\r\n", "400 "),
            ("\u{1}\u{2}\r\n\r\n", "400 "),
        ] {
            let answer = ask(address, request.as_bytes()).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")),
                "{request}: {answer}"
            );
        }
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        // It may be cut off while it still talks.
        let _ = stream.write_all(long.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431 "));
        let head = ask(address, b"HEAD /metrics HTTP/1.1\r\n\r\n").await;
        assert!(
            head.ends_with("\r\n\r\n") && head.starts_with("HTTP/1.1 200"),
            "{head}"
        );
    });
}

#[test]
fn peers_that_say_nothing_do_not_keep_others_out_for_ever() {
    with_server(|address, _| async move {
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS {
            idle.push(TcpStream::connect(address).await.expect("a connection"));
        }
        // Answered as soon as the time of the idle ones is over.
        let answer = ask(address, b"GET /metrics HTTP/1.1\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        drop(idle);
    });
}
