//! A server for one page: as small as HTTP/1.1 allows, so that it cannot become the daemon's
//! weak side. One request per connection, few connections, little time and memory for each.

use std::fmt::Write;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Connections at once; more wait in the kernel.
const CONNECTIONS: usize = 8;
/// Longest request that is read, in bytes; Prometheus sends a few hundred.
const REQUEST_BYTES: usize = 8192;
/// Time for a whole connection; a test need not wait so long.
const LIMIT: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 10 });
/// Pause after accept failed: for want of descriptors, say, which others may give back.
const PAUSE: Duration = Duration::from_millis(100);
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// A bound listener.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
}

impl Server {
    /// Takes the address.
    ///
    /// # Errors
    /// When it is in use, or not this machine's.
    pub async fn bind(address: SocketAddr) -> io::Result<Server> {
        let listener = TcpListener::bind(address).await?;
        Ok(Server { listener })
    }

    /// The address that was taken.
    ///
    /// # Errors
    /// Never on a bound listener.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Serves the registry at `/metrics`, for ever.
pub async fn serve(server: Server, registry: Registry) {
    let registry = Arc::new(registry);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Never closed: this cannot fail.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = server.listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let registry = Arc::clone(&registry);
        tokio::spawn(async move {
            // Whoever is too slow, or gone, gets nothing; there is nobody to tell.
            let _ = tokio::time::timeout(LIMIT, answer(stream, &registry)).await;
            drop(place);
        });
    }
}

async fn answer(mut stream: TcpStream, registry: &Registry) -> io::Result<()> {
    let Some(head) = read_head(&mut stream).await? else {
        return Ok(());
    };
    stream.write_all(&respond(&head, registry)).await?;
    stream.shutdown().await?;
    drain(&mut stream).await
}

/// The request up to its empty line; `None`: the peer went away. What is too long is cut.
async fn read_head(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::with_capacity(1024);
    let mut limited = stream.take(REQUEST_BYTES as u64);
    loop {
        let read = limited.read_buf(&mut head).await?;
        let whole = head.windows(4).any(|end| end == b"\r\n\r\n");
        if whole || head.len() >= REQUEST_BYTES {
            return Ok(Some(head));
        }
        if read == 0 {
            return Ok(None);
        }
    }
}

/// What is closed with unread bytes is reset, and the peer may lose the answer.
async fn drain(stream: &mut TcpStream) -> io::Result<()> {
    let mut rest = Vec::with_capacity(1024);
    let mut limited = stream.take(REQUEST_BYTES as u64);
    while limited.read_buf(&mut rest).await? > 0 {
        rest.clear();
    }
    Ok(())
}

fn respond(head: &[u8], registry: &Registry) -> Vec<u8> {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = std::str::from_utf8(line).unwrap_or_default();
    let mut words = line.split(' ');
    let parts = (words.next(), words.next(), words.next(), words.next());
    let (method, target) = match parts {
        (Some(method), Some(target), Some("HTTP/1.0" | "HTTP/1.1"), None) => (method, target),
        _ => return page("400 Bad Request", PLAIN, "not understood\n", true),
    };
    if !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let status = "431 Request Header Fields Too Large";
        return page(status, PLAIN, "too long\n", true);
    }
    let body = match method {
        "GET" => true,
        "HEAD" => false,
        _ => return page("405 Method Not Allowed", PLAIN, "GET only\n", true),
    };
    if target.split('?').next() != Some("/metrics") {
        return page("404 Not Found", PLAIN, "see /metrics\n", body);
    }
    let mut text = String::new();
    match encode(&mut text, registry) {
        Ok(()) => page("200 OK", OPENMETRICS, &text, body),
        Err(_) => page("500 Internal Server Error", PLAIN, "not encoded\n", body),
    }
}

fn page(status: &str, kind: &str, text: &str, body: bool) -> Vec<u8> {
    let mut answer = String::with_capacity(text.len() + 256);
    let allow = match status.starts_with("405") {
        true => "Allow: GET, HEAD\r\n",
        false => "",
    };
    // Writing into a String cannot fail.
    let _ = write!(
        answer,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{allow}\
         Connection: close\r\n\r\n",
        text.len()
    );
    if body {
        answer.push_str(text);
    }
    answer.into_bytes()
}

#[cfg(test)]
mod tests;
