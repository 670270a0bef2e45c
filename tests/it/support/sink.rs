//! Everything that leaves for anywhere: a network of a test's own in which each address leads back to this machine, every
//! packet is seen, and names resolve to what the test says.
//!
//! Works in network and mount namespaces of its own only, after [`ROUTES`].
#![expect(clippy::disallowed_methods, reason = "threads of the test's own watch the network")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};

use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketType};

use super::site::eventually;

/// Makes every address there is one of this machine's. Where the kernel has no version 6, version 4 has to do.
pub(crate) const ROUTES: &str = "ip link set lo up && ip route add local 0.0.0.0/0 dev lo && \
    { ip -6 route add local ::/0 dev lo || true; }";

/// What was tried to be reached: connections and datagrams.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sink(Arc<Mutex<BTreeSet<SocketAddr>>>);

impl Sink {
    /// Sees every packet from now on.
    pub(crate) fn open() -> Self {
        let everything = NonZeroU32::new(u32::from(3_u16.to_be())).map(Protocol::from_raw);
        let socket = rustix::net::socket(AddressFamily::PACKET, SocketType::DGRAM, everything).unwrap();
        let sink = Self::default();
        let seen = Arc::clone(&sink.0);
        std::thread::spawn(move || {
            let mut packet = [0; 128];
            loop {
                let (length, _) = rustix::net::recv(&socket, &mut packet[..], RecvFlags::empty()).unwrap();
                if let Some(address) = reaches_for(&packet[..length]) {
                    seen.lock().unwrap().insert(address);
                }
            }
        });
        sink
    }

    /// Whom something was sent to, once all that was sent before is seen.
    pub(crate) async fn seen(&self) -> BTreeSet<SocketAddr> {
        let mark: SocketAddr = "198.51.100.77:7".parse().unwrap();
        // Nobody listens there.
        drop(tokio::net::TcpStream::connect(mark).await);
        eventually("the mark in the sink", async || self.0.lock().unwrap().contains(&mark)).await;
        let mut seen = self.0.lock().unwrap().clone();
        seen.remove(&mark);
        seen
    }
}

/// Where a packet goes, if it begins a connection or is a datagram that is no answer of [`Names`].
fn reaches_for(packet: &[u8]) -> Option<SocketAddr> {
    let (address, protocol, inner): (IpAddr, u8, &[u8]) = match packet.first()? >> 4 {
        4 => {
            let address: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            (Ipv4Addr::from(address).into(), packet[9], packet.get(usize::from(packet[0] & 15) * 4..)?)
        }
        6 => {
            let address: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            (Ipv6Addr::from(address).into(), packet[6], &packet[40..])
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes(inner.get(at..at + 2)?.try_into().ok()?));
    let is_meant = match protocol {
        // SYN without ACK.
        6 => inner.get(13)? & 0x12 == 0x02,
        17 => port(0)? != 53,
        _ => false,
    };
    is_meant.then_some(SocketAddr::new(address, port(2)?))
}

/// A server of names at 127.0.0.1:53 that has one name.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    resolves_to: Arc<Mutex<Vec<IpAddr>>>,
    asked: Arc<Mutex<BTreeSet<String>>>,
}

impl Names {
    /// `name` resolves to what [`Self::resolve_to`] says, and no other name to anything.
    pub(crate) fn serve(name: &'static str) -> Self {
        let names = Self { resolves_to: Arc::default(), asked: Arc::default() };
        let served = names.clone();
        let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
        std::thread::spawn(move || {
            let mut question = [0; 512];
            loop {
                let (length, from) = socket.recv_from(&mut question).unwrap();
                let answer = served.answer(name, &question[..length]);
                socket.send_to(&answer, from).unwrap();
            }
        });
        names
    }

    pub(crate) fn resolve_to(&self, addresses: &[&str]) {
        *self.resolves_to.lock().unwrap() = addresses.iter().map(|address| address.parse().unwrap()).collect();
    }

    /// Every name that was asked for.
    pub(crate) fn asked(&self) -> BTreeSet<String> {
        self.asked.lock().unwrap().clone()
    }

    fn answer(&self, name: &str, question: &[u8]) -> Vec<u8> {
        let (mut labels, mut at) = (Vec::new(), 12);
        while question[at] > 0 {
            let end = at + 1 + usize::from(question[at]);
            labels.push(String::from_utf8_lossy(&question[at + 1..end]).to_lowercase());
            at = end;
        }
        let (asked, kind) = (labels.join("."), question[at + 2]);
        let is_known = asked == name;
        self.asked.lock().unwrap().insert(asked);
        let mut records = Vec::new();
        let mut count = 0_u16;
        for address in self.resolves_to.lock().unwrap().iter().filter(|_| is_known) {
            let bytes = match (address, kind) {
                (IpAddr::V4(address), 1) => address.octets().to_vec(),
                (IpAddr::V6(address), 28) => address.octets().to_vec(),
                _ => continue,
            };
            // The name of the question, its kind, of the internet, good for no time.
            records.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 0, 0, u8::try_from(bytes.len()).unwrap()]);
            records.extend(bytes);
            count += 1;
        }
        let status = if is_known { 0x80 } else { 0x83 };
        let head =
            [question[0], question[1], 0x81, status, 0, 1, count.to_be_bytes()[0], count.to_be_bytes()[1], 0, 0, 0, 0];
        [&head, &question[12..at + 5], &records].concat()
    }
}

/// How long a name server is waited for.
pub(crate) const RESOLV_CONF: &str = "nameserver 127.0.0.1\noptions timeout:1 attempts:2\n";
