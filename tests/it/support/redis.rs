//! Real Redis servers on the loopback, one for each test that wants one, and a wire to them that can be cut.
//!
//! The server is on the PATH, or comes from `scripts/test-servers.sh`.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Ends the server when standard input does: however the test ends, that closes then. Only when the server is gone, and its
/// port with it, this ends, too.
const GO_WITH_PARENT: &str = r#""$@" & server=$!; cat >/dev/null; kill -9 $server; wait $server"#;

/// A server without a memory: killed and started again, it is empty.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    arguments: Vec<String>,
    child: Option<Child>,
    /// Where a replica keeps what it was sent.
    _folder: tempfile::TempDir,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same, with more on its command line.
    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut arguments: Vec<_> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        arguments.extend(["--dir".to_owned(), folder.path().display().to_string()]);
        // The port is free now; should another process be quicker, the next one is tried.
        for _ in 0..10 {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            if let Some(child) = launch(address, &arguments) {
                return Self { address, arguments, child: Some(child), _folder: folder };
            }
        }
        panic!("redis-server does not start");
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    /// Starts it again at the same address, empty.
    pub(crate) fn restart(&mut self) {
        self.child = Some(launch(self.address, &self.arguments).expect("the port is still ours"));
    }

    /// One command, and the answer as the wire has it.
    pub(crate) fn command(&self, words: &[&str]) -> String {
        self.commands(&[words])
    }

    /// The same after the password, whose answer comes first.
    pub(crate) fn command_as(&self, password: &str, words: &[&str]) -> String {
        self.commands(&[&["AUTH", password], words])
    }

    fn commands(&self, commands: &[&[&str]]) -> String {
        let mut socket = TcpStream::connect(self.address).unwrap();
        let mut text = String::new();
        for words in commands.iter().chain([&["QUIT"].as_slice()]) {
            write!(text, "*{}\r\n", words.len()).unwrap();
            for word in *words {
                write!(text, "${}\r\n{word}\r\n", word.len()).unwrap();
            }
        }
        socket.write_all(text.as_bytes()).unwrap();
        std::io::read_to_string(socket).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}

/// `None` when it ends before it takes connections.
fn launch(address: SocketAddr, arguments: &[String]) -> Option<Child> {
    let mut child = Command::new("sh")
        .args(["-c", GO_WITH_PARENT, "sh"])
        .arg(program())
        .args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--save", "", "--appendonly", "no"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let ends = |line: &String| line.contains("exit") || line.contains("aborting");
    let ready = lines.by_ref().take_while(|line| !ends(line)).any(|line| line.contains("Ready to accept"));
    if !ready {
        drop(child.stdin.take());
        child.wait().unwrap();
    }
    ready.then_some(child)
}

fn program() -> PathBuf {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/redis/bin/redis-server");
    if ours.exists() {
        return ours;
    }
    let on_path = Command::new("redis-server").arg("--version").output().is_ok();
    assert!(on_path, "there is no redis-server to test against: run scripts/test-servers.sh, or put one on the PATH");
    "redis-server".into()
}

/// What a wire does with what goes over it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Weather {
    /// Passes it on.
    Fair,
    /// The server hears everything; its answers stay on the way.
    AnswersStuck,
    /// One answer in ten comes too late to be of use.
    SomeAnswersLate,
    /// Every answer comes a second late.
    Slow,
    /// Whoever sends something is cut off.
    Cut,
    /// Nothing passes either way, and nobody is told.
    Parted,
}

/// Longer than a gateway waits.
const TOO_LATE: Duration = Duration::from_millis(120);

/// A wire to a server. It ends with the test's runtime.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    weather: watch::Sender<Weather>,
    leads_to: watch::Sender<SocketAddr>,
    _tasks: JoinSet<()>,
}

impl Wire {
    pub(crate) async fn to(server: &Server) -> Self {
        let (weather, seen) = watch::channel(Weather::Fair);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (leads_to, to) = watch::channel(server.address);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut wires = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                wires.spawn(carry(near, *to.borrow(), seen.clone()));
            }
        });
        Self { address, weather, leads_to, _tasks: tasks }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// New connections end at another server.
    pub(crate) fn leads_to(&self, server: &Server) {
        self.leads_to.send_replace(server.address);
    }

    pub(crate) fn becomes(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

/// TLS in front of a server that has none, with a certificate of `localhost` by an authority of its own.
#[derive(Debug)]
pub(crate) struct Tls {
    pub(crate) port: u16,
    /// The authority, as PEM.
    pub(crate) authority: String,
    _tasks: JoinSet<()>,
}

impl Tls {
    pub(crate) async fn before(server: &Server) -> Self {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let config = config.with_single_cert(vec![cert.der().clone()], key).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, to) = (listener.local_addr().unwrap().port(), server.address);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut wires = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                wires.spawn(async move {
                    let mut far = tokio::net::TcpStream::connect(to).await.unwrap();
                    if let Ok(mut near) = acceptor.accept(near).await {
                        // Ends when either side does.
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
        Self { port, authority: cert.pem(), _tasks: tasks }
    }
}

async fn carry(near: tokio::net::TcpStream, to: SocketAddr, weather: watch::Receiver<Weather>) {
    let Ok(far) = tokio::net::TcpStream::connect(to).await else { return };
    let (mut from_near, mut to_near) = near.into_split();
    let (mut from_far, mut to_far) = far.into_split();
    let (mut there, mut back) = (weather.clone(), weather);
    let questions = async {
        let mut buffer = [0; 16 * 1024];
        while let Ok(length @ 1..) = from_near.read(&mut buffer).await {
            there.wait_for(|weather| *weather != Weather::Parted).await.ok()?;
            if *there.borrow() == Weather::Cut {
                // The server hangs up then, and with it we do.
                return to_far.shutdown().await.ok();
            }
            to_far.write_all(&buffer[..length]).await.ok()?;
        }
        Some(())
    };
    let answers = async {
        let (mut buffer, mut count) = ([0; 16 * 1024], 0_u32);
        while let Ok(length @ 1..) = from_far.read(&mut buffer).await {
            count = count.wrapping_add(1);
            if *back.borrow() == Weather::SomeAnswersLate && count % 10 == 0 {
                tokio::time::sleep(TOO_LATE).await;
            }
            if *back.borrow() == Weather::Slow {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            let passes = |weather: &Weather| !matches!(weather, Weather::Parted | Weather::AnswersStuck);
            back.wait_for(passes).await.ok()?;
            to_near.write_all(&buffer[..length]).await.ok()?;
        }
        Some(())
    };
    // Each side ends when its sender does; what the near side gave up is still heard by the far one.
    tokio::join!(questions, answers);
}
