//! A line to a server that can be cut and opened again, for connections that are there as well as for new ones.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A cut is noticed after this.
const LOOK: Duration = Duration::from_millis(10);

pub struct Gate {
    pub addr: SocketAddr,
    ended: Arc<AtomicBool>,
}

impl Gate {
    /// `is_open` is asked all the time.
    pub fn start(to: SocketAddr, is_open: impl Fn() -> bool + Send + Sync + 'static) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let goes_on = {
            let ended = Arc::clone(&ended);
            Arc::new(move || !ended.load(Ordering::Relaxed) && is_open())
        };
        let stop = Arc::clone(&ended);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let Ok(client) = client else { continue };
                if !goes_on() {
                    continue;
                }
                let Ok(server) = TcpStream::connect(to) else {
                    continue;
                };
                for (from, into) in [(&client, &server), (&server, &client)] {
                    let (from, into) = (from.try_clone().unwrap(), into.try_clone().unwrap());
                    let goes_on = Arc::clone(&goes_on);
                    std::thread::spawn(move || pass(from, into, &*goes_on));
                }
            }
        });
        Gate { addr, ended }
    }

    pub fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.addr)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.addr);
    }
}

fn pass(mut from: TcpStream, mut into: TcpStream, goes_on: &dyn Fn() -> bool) {
    from.set_read_timeout(Some(LOOK)).unwrap();
    from.set_nodelay(true).unwrap();
    into.set_nodelay(true).unwrap();
    let mut buffer = vec![0; 64 * 1024];
    while goes_on() {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                if !goes_on() || into.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            Err(e)
                if matches!(
                    e.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) => {}
            Err(_) => break,
        }
    }
    let _ = into.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
