//! A self-signed certificate, made once per test program.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// Writes cert.pem and key.pem into `dir`.
pub(super) fn write_certificate(dir: &Path) -> std::io::Result<()> {
    static PEM: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    let (cert, key) = PEM.get_or_init(make);
    std::fs::write(dir.join("cert.pem"), cert)?;
    std::fs::write(dir.join("key.pem"), key)
}

fn make() -> (Vec<u8>, Vec<u8>) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let output = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
        ])
        .args(["-nodes", "-days", "30", "-subj", "/CN=localhost", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .output()
        .expect("openssl is installed");
    assert!(
        output.status.success(),
        "openssl: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    (
        std::fs::read(cert).expect("the certificate"),
        std::fs::read(key).expect("the key"),
    )
}
