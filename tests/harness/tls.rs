//! Certificates: a self-signed one, made once per test program, and authorities that sign others.

use std::path::{Path, PathBuf};
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

/// Somebody who signs certificates. All files are in its folder, and go with it.
pub struct Authority {
    dir: tempfile::TempDir,
}

/// A certificate and its key.
pub struct Issued {
    pub cert: PathBuf,
    pub key: PathBuf,
}

const EC: [&str; 4] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];

impl Authority {
    pub fn new(name: &str) -> Authority {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut command = Command::new("openssl");
        command
            .args(["req", "-x509", "-nodes", "-days", "30"])
            .args(EC);
        command.args(["-subj", &format!("/CN={name}"), "-keyout", "ca.key"]);
        openssl(command.args(["-out", "ca.pem"]).current_dir(dir.path()));
        Authority { dir }
    }

    /// Its own certificate.
    pub fn cert(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// One for whoever is on loopback, as a server or a client.
    pub fn issue(&self, name: &str) -> Issued {
        self.sign(name, Command::new("openssl"))
    }

    /// The same, which was valid once.
    pub fn issue_expired(&self, name: &str) -> Issued {
        let mut then = Command::new("faketime");
        then.args(["2020-01-01", "openssl"]);
        self.sign(name, then)
    }

    fn sign(&self, name: &str, mut signer: Command) -> Issued {
        let file = |what: &str| self.dir.path().join(format!("{name}.{what}"));
        let issued = Issued {
            cert: file("pem"),
            key: file("key"),
        };
        let uses = "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n";
        std::fs::write(file("ext"), uses).expect("what it is for");
        let mut request = Command::new("openssl");
        request.args(["req", "-nodes"]).args(EC);
        request.args(["-subj", &format!("/CN={name}"), "-keyout"]);
        request.arg(&issued.key).arg("-out").arg(file("csr"));
        openssl(&mut request);
        signer.args(["x509", "-req", "-days", "20", "-CAcreateserial"]);
        signer.args(["-CA", "ca.pem", "-CAkey", "ca.key", "-in"]);
        signer.arg(file("csr")).arg("-extfile").arg(file("ext"));
        openssl(
            signer
                .arg("-out")
                .arg(&issued.cert)
                .current_dir(self.dir.path()),
        );
        let secret = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&issued.key, secret).expect("the key's mode");
        issued
    }
}

fn openssl(command: &mut Command) {
    let output = command
        .output()
        .expect("openssl (and faketime) is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}
