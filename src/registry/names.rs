//! What a registry's name resolves to, without the addresses that no registry has.
//!
//! Whoever can change the answer for a name could have the gateway call the metadata service of its machine, or what
//! listens on the machine itself, with the registry's credentials. So the answer is looked at each time a connection is
//! made, and only what passes is connected to. An address that is configured as such is nobody's answer and is not asked
//! about; private networks are where registries live.

use std::collections::HashSet;
use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::net::lookup_host;

/// The system's resolver, and what it may not say. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Names that have been on another machine. There are as many as the configuration has.
    elsewhere: Arc<Mutex<HashSet<String>>>,
}

/// Nothing is left of what a name resolves to.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{name}` resolves to {refused:?}: not a registry's address, or not this one's any more. If it is right, write the \
     address itself into registry.uri, or restart the gateway"
)]
struct NoneLeft {
    name: String,
    refused: Vec<IpAddr>,
}

impl Names {
    /// What may be connected to of what `name` resolves to.
    fn sift(&self, name: &str, addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, NoneLeft> {
        let is_elsewhere = |address: &SocketAddr| !may_be_here(address.ip()) && !is_never_one(address.ip());
        let mut elsewhere = self.elsewhere.lock();
        if addresses.iter().any(is_elsewhere) {
            elsewhere.insert(name.to_owned());
        }
        let was_elsewhere = elsewhere.contains(name);
        drop(elsewhere);
        let passes = |address: &SocketAddr| is_elsewhere(address) || (may_be_here(address.ip()) && !was_elsewhere);
        let (left, refused): (Vec<_>, Vec<_>) = addresses.into_iter().partition(passes);
        if left.is_empty() && !refused.is_empty() {
            let refused = refused.iter().map(SocketAddr::ip).collect();
            return Err(NoneLeft { name: name.to_owned(), refused });
        }
        Ok(left)
    }
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let names = self.clone();
        Box::pin(async move {
            let found = lookup_host((name.as_str(), 0)).await?.collect();
            let left = names.sift(name.as_str(), found).map_err(Box::<dyn Error + Send + Sync>::from)?;
            Ok(Box::new(left.into_iter()) as Addrs)
        })
    }
}

/// Whether an address is this machine's own.
fn may_be_here(address: IpAddr) -> bool {
    plain(address).is_loopback()
}

/// Whether no registry has this address: it leads to the metadata service of a cloud, to this machine in disguise, or to
/// nobody in particular.
fn is_never_one(address: IpAddr) -> bool {
    match plain(address) {
        IpAddr::V4(address) => {
            address.octets()[0] == 0
                || address.is_link_local()
                || address.is_multicast()
                || address.is_broadcast()
                || address == Ipv4Addr::new(100, 100, 100, 200) // Alibaba Cloud's metadata
        }
        IpAddr::V6(address) => {
            address.is_unspecified()
                || address.is_unicast_link_local()
                || address.is_multicast()
                || address == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254) // EC2's metadata
        }
    }
}

/// The address of version 4 within one of version 6, where there is one: mapped, or behind NAT64 or 6to4.
fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(long) = address else { return address };
    let from = |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match long.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            from(high, low)
        }
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sift(names: &Names, addresses: &[&str]) -> Option<Vec<String>> {
        let addresses = addresses.iter().map(|address| SocketAddr::new(address.parse().unwrap(), 0)).collect();
        let left = names.sift("mlflow.example", addresses).ok()?;
        Some(left.iter().map(|address| address.ip().to_string()).collect())
    }

    #[test]
    fn registries_on_private_networks_and_on_this_machine_are_found() {
        for address in
            ["10.0.0.1", "192.168.1.1", "172.16.0.9", "100.64.0.1", "93.184.216.34", "fd12::1", "2001:db8::1"]
        {
            assert_eq!(sift(&Names::default(), &[address]).unwrap(), [address]);
        }
        let names = Names::default();
        for _ in 0..2 {
            assert_eq!(sift(&names, &["127.0.0.1", "::1"]).unwrap(), ["127.0.0.1", "::1"]);
        }
    }

    #[test]
    fn no_name_leads_to_a_metadata_service_in_any_disguise() {
        let never = [
            "169.254.169.254",
            "169.254.170.2",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "100.100.100.200",
            "::",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
            "::ffff:169.254.169.254",
            "::ffff:0.0.0.0",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::",
        ];
        for address in never {
            assert_eq!(sift(&Names::default(), &[address]), None, "{address}");
            assert_eq!(sift(&Names::default(), &[address, "10.0.0.1"]).unwrap(), ["10.0.0.1"], "{address}");
        }
    }

    #[test]
    fn a_name_that_was_elsewhere_is_not_on_this_machine_later() {
        for here in ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"] {
            let names = Names::default();
            assert!(sift(&names, &["10.0.0.1"]).is_some());
            assert_eq!(sift(&names, &[here]), None, "{here}");
            assert_eq!(sift(&names, &[here, "10.0.0.2"]).unwrap(), ["10.0.0.2"], "{here}");
            assert_eq!(sift(&Names::default(), &[here, "10.0.0.2"]).unwrap(), ["10.0.0.2"], "{here}");
        }
        let names = Names::default();
        assert_eq!(sift(&names, &["::1", "127.0.0.1"]).unwrap().len(), 2);
        assert!(sift(&names, &["10.0.0.1"]).is_some(), "it may move away");
    }

    #[test]
    fn the_refusal_says_what_to_do() {
        let names = Names::default();
        let refused = names.sift("mlflow.example", vec!["169.254.169.254:0".parse().unwrap()]).unwrap_err();
        let said = refused.to_string();
        assert!(
            said.contains("`mlflow.example` resolves to [169.254.169.254]") && said.contains("registry.uri"),
            "{said}"
        );
    }
}
