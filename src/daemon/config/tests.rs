use super::*;
use std::io::Write;

const SMALL: &str = r#"
node = "alpha"
[etcd]
endpoints = ["http://127.0.0.1:2379"]
"#;

const WHOLE: &str = r#"
node = "alpha-1"
namespace = "harbor"
cluster = "post"
lease = "1m"
window = 20_000
socket = "/run/x"
state_dir = "/var/x"
metrics = "[::1]:9999"

[etcd]
endpoints = ["https://10.0.0.1:2379", "https://[fd00::2]:2379"]
ca = "/etc/ca.pem"
cert = "/etc/cert.pem"
key = "/etc/key.pem"
timeout = "500ms"

[doveadm]
socket = "/run/y"
password_file = "/etc/password"

[[peer]]
name = "beta"
doveadm = "beta.example.org:24245"

[[peer]]
name = "gamma"
doveadm = "[fd00::3]:24245"
"#;

fn parse(text: &str) -> Result<Config, Error> {
    Config::parse(Path::new("x.toml"), text)
}

fn message(text: &str) -> String {
    match parse(text) {
        Ok(config) => panic!("{text:?} was taken as {config:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn node_and_etcd_are_enough() {
    let config = parse(SMALL).expect("right");
    assert_eq!(config.node, "alpha");
    assert_eq!(config.namespace, "alpha");
    assert_eq!(config.cluster, "mail");
    assert_eq!((config.lease_seconds(), config.window), (5, None));
    assert_eq!(config.socket, Path::new("/run/dovecot/xidd"));
    assert_eq!(config.state_dir, Path::new("/var/lib/xidd"));
    assert_eq!(config.metrics, "127.0.0.1:9154".parse().ok());
    assert_eq!(config.etcd.timeout, Duration::from_secs(2));
    assert_eq!(
        config.doveadm.socket,
        Path::new("/run/dovecot/doveadm-server")
    );
    assert!(config.peers.is_empty());
}

#[test]
fn etcd_s_connection_is_tested_less_often_than_etcd_answers() {
    for (lease, seconds) in [("3s", 2), ("5s", 2), ("30s", 10)] {
        let text = format!("lease = \"{lease}\"\n{SMALL}");
        let settings = parse(&text).expect("right").store().expect("no files");
        assert_eq!(settings.silence, Duration::from_secs(seconds), "{lease}");
    }
}

#[test]
fn every_key_is_taken_over() {
    let config = parse(WHOLE).expect("right");
    assert_eq!(config.namespace, "harbor");
    assert_eq!((config.lease_seconds(), config.window), (60, Some(20_000)));
    assert_eq!(config.metrics, "[::1]:9999".parse().ok());
    assert_eq!(config.etcd.endpoints.len(), 2);
    assert_eq!(config.etcd.timeout, Duration::from_millis(500));
    assert_eq!(config.etcd.key.as_deref(), Some(Path::new("/etc/key.pem")));
    assert_eq!(config.peers[1].doveadm, "[fd00::3]:24245");
}

#[test]
fn a_name_that_is_no_namespace_gives_the_one_that_the_plug_in_makes_of_it() {
    let config = parse(&SMALL.replace("alpha", "mail-1.example.org")).expect("right");
    assert_eq!(config.namespace, "mail_1");
}

/// What is written instead of a line of `WHOLE`, and what the message must say.
const WRONG: &[(&str, &str, &[&str])] = &[
    ("node = \"alpha-1\"", "", &["x.toml: node is missing"]),
    (
        "node = \"alpha-1\"",
        "node = 5",
        &["x.toml:2: node = 5: expected the node's name"],
    ),
    (
        "\"harbor\"",
        "\"5x\"",
        &["namespace = \"5x\"", "xid_namespace"],
    ),
    (
        "\"1m\"",
        "\"5\"",
        &[
            "x.toml:5: lease = \"5\"",
            "whole seconds",
            "from 2s to 600s",
        ],
    ),
    ("\"1m\"", "5", &["lease = 5: expected whole seconds"]),
    ("\"1m\"", "\"2500ms\"", &["lease = \"2500ms\""]),
    ("\"1m\"", "\"1s\"", &["lease = \"1s\""]),
    ("\"1m\"", "\"99999999999999999999h\"", &["lease = "]),
    (
        "20_000",
        "0",
        &["window = 0: expected a number, from 100 to 1000000"],
    ),
    ("20_000", "-1", &["window = -1"]),
    ("20_000", "\"many\"", &["window = \"many\""]),
    (
        "\"/run/x\"",
        "\"run/x\"",
        &["socket = \"run/x\": expected an absolute path"],
    ),
    (
        "\"[::1]:9999\"",
        "\"localhost:9999\"",
        &["metrics = ", "\"IP:PORT\""],
    ),
    ("\"[::1]:9999\"", "\"9999\"", &["metrics = \"9999\""]),
    (
        "cluster = \"post\"",
        "clsuter = \"post\"",
        &[
            "x.toml:4: clsuter: there is no such key",
            "cluster, doveadm",
        ],
    ),
    ("cluster = \"post\"", "cluster = \"\"", &["cluster = \"\""]),
    ("cluster = \"post\"", "cluster = ", &["x.toml:4: "]),
    (
        "cluster = \"post\"",
        "cluster = \"post\"\ncluster = \"b\"",
        &["x.toml:5: ", "duplicate key"],
    ),
    (
        "endpoints = [\"https://10.0.0.1:2379\", \"https://[fd00::2]:2379\"]",
        "",
        &["etcd.endpoints is missing"],
    ),
    (
        "[\"https://10.0.0.1:2379\", \"https://[fd00::2]:2379\"]",
        "[]",
        &["etcd.endpoints = []"],
    ),
    (
        "[\"https://10.0.0.1:2379\", \"https://[fd00::2]:2379\"]",
        "\"https://a:1\"",
        &["a list such as"],
    ),
    (
        "https://10.0.0.1:2379",
        "10.0.0.1:2379",
        &["etcd.endpoints"],
    ),
    (
        "https://10.0.0.1:2379",
        "https://10.0.0.1:70000",
        &["etcd.endpoints"],
    ),
    (
        "https://[fd00::2]:2379",
        "https://[fd00:2379",
        &["etcd.endpoints"],
    ),
    ("ca = \"/etc/ca.pem\"", "", &["etcd.ca is missing"]),
    ("cert = \"/etc/cert.pem\"", "", &["etcd.cert is missing"]),
    ("key = \"/etc/key.pem\"", "", &["etcd.key is missing"]),
    (
        "\"500ms\"",
        "\"2m\"",
        &["etcd.timeout = \"2m\"", "from 10ms to 60s"],
    ),
    ("\"500ms\"", "\"0ms\"", &["etcd.timeout = \"0ms\""]),
    (
        "timeout =",
        "time_out =",
        &[
            "etcd.time_out: there is no such key",
            "ca, cert, endpoints, key, timeout",
        ],
    ),
    (
        "password_file = \"/etc/password\"",
        "",
        &["doveadm.password_file is missing"],
    ),
    (
        "password_file =",
        "password =",
        &["doveadm.password: there is no such key"],
    ),
    (
        "\"gamma\"",
        "\"beta\"",
        &["peer[2].name = \"beta\"", "no other node"],
    ),
    (
        "\"gamma\"",
        "\"alpha-1\"",
        &["peer[2].name = \"alpha-1\"", "no other node"],
    ),
    (
        "\"beta.example.org:24245\"",
        "\"beta.example.org\"",
        &["peer[1].doveadm", "24245"],
    ),
    (
        "\"beta.example.org:24245\"",
        "\"tcp:beta:24245\"",
        &["peer[1].doveadm"],
    ),
    (
        "\"beta.example.org:24245\"",
        "\"beta:0\"",
        &["peer[1].doveadm"],
    ),
    (
        "[doveadm]\nsocket",
        "doveadm = 1\n[x]\nsocket",
        &["there is no such key"],
    ),
    (
        "\n[[peer]]\nname = \"gamma\"",
        "x = 1\n[[peer]]\nname = \"gamma\"",
        &["peer[1].x: there is no such key"],
    ),
];

#[test]
fn every_wrong_value_is_named_with_what_is_expected() {
    for (right, wrong, parts) in WRONG {
        assert!(WHOLE.contains(right), "{right:?} is not in the file");
        let text = message(&WHOLE.replacen(right, wrong, 1));
        for part in *parts {
            assert!(text.contains(part), "{wrong:?}: {text:?} lacks {part:?}");
        }
        assert!(!text.contains('\n'), "more than one line: {text:?}");
    }
}

#[test]
fn certificates_and_plain_endpoints_do_not_go_together() {
    let with_ca = format!("{SMALL}ca = \"/etc/ca.pem\"\n");
    assert!(message(&with_ca).contains("https:// endpoints"));
}

#[test]
fn metrics_can_be_turned_off() {
    let config = parse(&format!("metrics = \"off\"\n{SMALL}")).expect("right");
    assert_eq!(config.metrics, None);
}

#[test]
fn a_value_that_goes_on_for_ever_is_cut_in_the_message() {
    let long = format!("socket = \"{}\"\n{SMALL}", "x".repeat(100_000));
    assert!(message(&long).len() < 300);
}

#[test]
fn no_text_is_too_strange_to_be_looked_at() {
    use proptest::prelude::*;
    proptest!(|(text in ".{0,200}")| {
        let _ = parse(&text);
    });
    proptest!(|(cut in 0..WHOLE.len())| {
        let _ = parse(WHOLE.get(..cut).unwrap_or_default());
    });
}

fn file(content: &str, mode: u32) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(content.as_bytes()).expect("written");
    file.as_file()
        .set_permissions(std::fs::Permissions::from_mode(mode))
        .expect("its mode");
    file
}

fn password(content: &str, mode: u32) -> Result<Option<String>, Error> {
    let file = file(content, mode);
    let password_file = Some(file.path().to_owned());
    let socket = PathBuf::from("/x");
    Doveadm {
        socket,
        password_file,
    }
    .password()
}

#[test]
fn a_password_is_the_only_line_of_its_file() {
    assert_eq!(
        password("s e-cret\n", 0o640).expect("right").as_deref(),
        Some("s e-cret")
    );
    for wrong in ["", "\n", "a\nb\n", "a\tb"] {
        assert!(
            matches!(password(wrong, 0o600), Err(Error::Content { .. })),
            "{wrong:?}"
        );
    }
}

#[test]
fn a_secret_that_everybody_can_read_is_refused_and_not_repeated() {
    for mode in [0o644, 0o604, 0o602, 0o601] {
        let error = password("swordfish", mode).expect_err("exposed");
        assert!(matches!(error, Error::Exposed { .. }), "{error}");
        assert!(!error.to_string().contains("swordfish"), "{error}");
    }
}

#[test]
fn a_key_is_read_as_pem_and_kept_from_everybody() {
    let good = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
    let (ca, cert) = (file(good, 0o644), file(good, 0o644));
    let settings = |key: &tempfile::NamedTempFile| Etcd {
        endpoints: vec!["https://127.0.0.1:1".into()],
        ca: Some(ca.path().to_owned()),
        cert: Some(cert.path().to_owned()),
        key: Some(key.path().to_owned()),
        timeout: Duration::from_secs(1),
    };
    assert!(settings(&file(good, 0o600)).tls().expect("right").is_some());
    let exposed = settings(&file(good, 0o644)).tls();
    assert!(matches!(exposed, Err(Error::Exposed { .. })));
    let no_pem = settings(&file("hello", 0o600)).tls();
    assert!(matches!(no_pem, Err(Error::Content { .. })));
}

#[test]
fn the_example_in_the_package_is_right_and_names_every_key() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/xidd.toml");
    let text = std::fs::read_to_string(&path).expect("packaging/xidd.toml");
    // As it is shipped all is commented out but what has no default.
    Config::parse(&path, &text).expect("the example is right as it is");
    let all = text.lines().map(|line| match line.strip_prefix('#') {
        Some(rest) if !rest.starts_with([' ', '#']) && !rest.is_empty() => rest,
        Some(_) => "",
        None => line,
    });
    let all: Vec<&str> = all.collect();
    Config::parse(&path, &all.join("\n")).expect("and with every key switched on");
    for line in WHOLE.lines() {
        let key = line.split(" =").next().unwrap_or_default();
        assert!(
            key.is_empty() || all.iter().any(|line| line.starts_with(key)),
            "{key} is not in the example"
        );
    }
}

#[test]
fn what_cannot_change_in_a_running_daemon_is_kept() {
    let (old, new) = (parse(SMALL).expect("right"), parse(WHOLE).expect("right"));
    let differ = old.fixed_keys_that_differ(&new);
    let all = [
        "node",
        "namespace",
        "cluster",
        "window",
        "socket",
        "state_dir",
        "metrics",
    ];
    assert_eq!(differ, all);
    let kept = new.clone().keeping_fixed_keys_of(&old);
    assert!(old.fixed_keys_that_differ(&kept).is_empty());
    assert_eq!(kept.peers, new.peers);
    assert_eq!(kept.lease, new.lease);
}

#[test]
fn what_changes_with_the_next_connection_to_etcd_is_told_from_what_changes_at_once() {
    let old = parse(WHOLE).expect("right");
    assert!(old.late_keys_that_differ(&old).is_empty());
    let late = [
        ("\"1m\"", "\"2m\"", "lease"),
        (":2379\"", ":2380\"", "etcd"),
    ];
    for (from, to, key) in late {
        let new = parse(&WHOLE.replace(from, to)).expect("right");
        assert_eq!(old.late_keys_that_differ(&new), [key]);
        assert!(old.fixed_keys_that_differ(&new).is_empty());
    }
}
