//! What a benchmark needs to talk to a gateway: an address, a key, requests and their answers.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

/// An answer, read to its end.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

/// A connection that is kept.
pub(crate) struct Connection(BufReader<TcpStream>);

impl Connection {
    /// `None` where nobody listens.
    pub(crate) fn open(address: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(address).ok()?;
        stream.set_nodelay(true).ok()?;
        Some(Self(BufReader::new(stream)))
    }

    /// Sends a whole request and reads the answer to it.
    pub(crate) fn ask(&mut self, request: &[u8]) -> Option<Answer> {
        self.0.get_mut().write_all(request).ok()?;
        let (mut line, mut status, mut length) = (String::new(), None, 0);
        loop {
            line.clear();
            if self.0.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let trimmed = line.trim_end();
            if trimmed.is_empty() {
                break;
            }
            if status.is_none() {
                status = trimmed.split(' ').nth(1)?.parse().ok();
            } else if let Some((name, value)) = trimmed.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().ok()?;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).ok()?;
        Some(Answer { status: status?, body })
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A key of the plan `bench`, made by the command.
pub(crate) fn create_key(file: &Path) -> String {
    let made = Command::new(env!("CARGO_BIN_EXE_modelgate"))
        .args(["keys", "create", "--name", "bench", "--plan", "bench", "--config"])
        .arg(file)
        .output()
        .unwrap();
    let text = String::from_utf8(made.stdout).unwrap();
    let mut words = text.split(char::is_whitespace);
    words.find(|word| word.starts_with("mg_live_")).expect("keys create prints a key").to_owned()
}
