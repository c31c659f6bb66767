//! How much one client may ask for, and what goes on over TLS.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mycelite_journal::Pos;
use rustls::pki_types::pem::PemObject;

use crate::clikit::{Serve, text};
use crate::kit::{CLOSED, status_of};
use crate::netkit::{Primary, append, request, zstd};
use crate::tlskit::{Authority, Valid};

#[test]
fn who_asks_too_often_waits_and_a_shipper_never_does() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = dir.path().join("tokens");
    std::fs::write(&tokens, "good\n").unwrap();
    let server = Serve::start(
        &dir.path().join("few"),
        &["--requests-max", "20", "--token-file", text(&tokens)],
    );
    let addr = server.address.parse().unwrap();
    let ask = |token: &str| {
        let bearer = format!("Bearer {token}");
        request(
            addr,
            "GET",
            "/v1/databases",
            &[("authorization", &bearer)],
            b"",
        )
        .status
    };
    let guesses: Vec<u16> = (0..8).map(|n| ask(&format!("guess{n}"))).collect();
    assert_eq!(guesses[0], 401);
    assert_eq!(guesses[1], 429, "{guesses:?}");
    assert!(guesses.iter().filter(|status| **status == 401).count() < 5);
    // The sign of life does not count, and after a while all is well again.
    assert_eq!(request(addr, "GET", "/healthz", &[], b"").status, 200);
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(ask("good"), 200);

    // The default is out of the way of whoever ships one record after the other.
    let server = Serve::start(&dir.path().join("default"), &[]);
    let addr = server.address.parse().unwrap();
    let mut primary = Primary::new(dir.path().join("primary-mycelite"), 7);
    primary.commits(200);
    let mut after = Pos::ZERO;
    for (index, record) in primary.records(0).iter().enumerate() {
        let answer = append(addr, "app", primary.id(), after, &zstd(record));
        assert_eq!(answer.status, 200, "{}", answer.text());
        after = primary.pos_at(index as u64 + 1);
    }
}

/// A connection over TLS, without any HTTP of ours.
fn connect(addr: &str, ca: &Authority) -> rustls::StreamOwned<rustls::ClientConnection, TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    let pem = std::fs::read(ca.file()).unwrap();
    roots
        .add(rustls::pki_types::CertificateDer::from_pem_slice(&pem).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "127.0.0.1".try_into().unwrap();
    let connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let stream = TcpStream::connect(addr).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    rustls::StreamOwned::new(connection, stream)
}

#[test]
fn the_bounds_hold_over_tls_too() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::new(dir.path(), "ours");
    let files = ca.sign("127.0.0.1", Valid::Now);
    let server = Serve::start(
        &dir.path().join("data"),
        &[
            "--tls-cert",
            text(&files.cert),
            "--tls-key",
            text(&files.key),
            "--client-timeout",
            "1",
            "--body-max",
            "1",
        ],
    );
    let ask = |bytes: &[u8]| {
        let mut stream = connect(&server.address, &ca);
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer
    };
    let long = "x".repeat(100_000);
    for (bytes, want) in [
        (
            "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_string(),
            200,
        ),
        (format!("GET /healthz HTTP/1.1\r\nx: {long}\r\n\r\n"), 431),
        ("hello\r\n\r\n".to_string(), 400),
        (
            "GET /v1/databases HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n"
                .to_string(),
            403,
        ),
    ] {
        let status = status_of(&ask(bytes.as_bytes()));
        // What was sent beyond the limit may cut the answer off.
        assert!(
            status == want || (want == 431 && status == CLOSED),
            "{status} {bytes:.40}"
        );
    }
    // Silence: before the handshake, within it, and after it.
    for begin in [&b""[..], b"\x16\x03\x01\x02\x00"] {
        let since = Instant::now();
        let mut stream = TcpStream::connect(&server.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream.write_all(begin).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
        assert!(
            since.elapsed() < Duration::from_secs(10),
            "{:?}",
            since.elapsed()
        );
    }
    let since = Instant::now();
    assert_ne!(status_of(&ask(b"GET / HT")), 200);
    assert!(
        since.elapsed() < Duration::from_secs(10),
        "{:?}",
        since.elapsed()
    );
    assert_eq!(status_of(&ask(b"GET /healthz HTTP/1.0\r\n\r\n")), 200);
}

/// Slow connections from one address leave room for all others, and are told why they get no more.
#[test]
fn one_address_cannot_hold_all_connections() {
    let dir = tempfile::tempdir().unwrap();
    let server = Serve::start(
        &dir.path().join("data"),
        &["--connections-max", "8", "--client-timeout", "30"],
    );
    let addr: std::net::SocketAddr = server.address.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let from = |address: &str| -> TcpStream {
        let stream = runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket
                .bind(format!("{address}:0").parse().unwrap())
                .unwrap();
            socket.connect(addr).await.unwrap().into_std().unwrap()
        });
        stream.set_nonblocking(false).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    };
    let ask = |address: &str| {
        let mut stream = from(address);
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        (
            status_of(&answer),
            String::from_utf8_lossy(&answer).into_owned(),
        )
    };
    // A head that never ends, again and again, from one address.
    let mut slow: Vec<TcpStream> = (0..40).map(|_| from("127.0.0.5")).collect();
    for stream in &mut slow {
        let _ = stream.write_all(b"GET /healthz HT");
    }
    let (status, answer) = ask("127.0.0.5");
    assert_eq!(status, 429, "{answer}");
    assert!(
        answer.contains("connections_per_address_max") && answer.contains("retry-after"),
        "{answer}"
    );
    for _ in 0..20 {
        assert_eq!(ask("127.0.0.6").0, 200);
        assert_eq!(ask("127.0.0.1").0, 200);
    }
    drop(slow);
    crate::netkit::eventually("room for the first address", || ask("127.0.0.5").0 == 200);

    let server = Serve::start(
        &dir.path().join("open"),
        &[
            "--connections-max",
            "4",
            "--connections-per-address-max",
            "0",
            "--client-timeout",
            "30",
        ],
    );
    let all: Vec<TcpStream> = (0..4)
        .map(|_| TcpStream::connect(&server.address).unwrap())
        .collect();
    std::thread::sleep(Duration::from_millis(200));
    let answer = request(server.address.parse().unwrap(), "GET", "/healthz", &[], b"");
    assert_eq!(answer.status, 503, "{}", answer.text());
    drop(all);
}
