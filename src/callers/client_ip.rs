//! The client address of a request, as far as it can be trusted.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::HeaderMap;

/// Every proxy appends the address of its own client to this header.
const FORWARDED: &str = "x-forwarded-for";

/// The address of the client. A front attaches it to a request as an extension if it knows the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientIp(pub IpAddr);

impl ClientIp {
    /// The client of the outermost of `proxies` trusted proxies, read from `X-Forwarded-For` counting from its end. The
    /// entries before that could be forged by the client, so they are ignored. Without proxies, or if the header has too
    /// few entries, it is the `peer` of the connection.
    pub fn of(headers: &HeaderMap, peer: Option<IpAddr>, proxies: usize) -> Option<ClientIp> {
        let forwarded = || {
            // Bytes, since the entries that a client forged need not be text.
            let values = headers.get_all(FORWARDED).iter().rev();
            let mut hops = values.flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','));
            address(hops.nth(proxies.checked_sub(1)?)?)
        };
        forwarded().or(peer).map(|address: IpAddr| ClientIp(address.to_canonical()))
    }

    /// The address range that belongs to one client: the address itself, or for IPv6 its /64 network, within which a client
    /// can choose addresses freely.
    pub fn network(self) -> IpAddr {
        match self.0 {
            IpAddr::V6(address) => {
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
            }
            address => address,
        }
    }
}

/// An address as a proxy writes it, with or without a port.
fn address(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?.trim();
    text.parse().or_else(|_| text.parse().map(|with_port: SocketAddr| with_port.ip())).ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn client(forwarded: &[&'static str], proxies: usize) -> String {
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append(FORWARDED, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        ClientIp::of(&headers, Some([10, 0, 0, 1].into()), proxies).unwrap().0.to_string()
    }

    #[test]
    fn only_entries_of_trusted_proxies_are_believed() {
        let header = ["1.1.1.1, 2.2.2.2", "3.3.3.3,4.4.4.4"];
        for (proxies, address) in [
            (0, "10.0.0.1"),
            (1, "4.4.4.4"),
            (2, "3.3.3.3"),
            (3, "2.2.2.2"),
            (4, "1.1.1.1"),
            (5, "10.0.0.1"),
        ] {
            assert_eq!(client(&header, proxies), address);
        }
        assert_eq!(client(&[], 1), "10.0.0.1");
        assert_eq!(client(&["nonsense"], 1), "10.0.0.1");
        assert_eq!(client(&["é, 3.3.3.3"], 1), "3.3.3.3");
        assert_eq!(client(&["3.3.3.3:5678"], 1), "3.3.3.3");
        assert_eq!(client(&["[2001:db8::1]:5678"], 1), "2001:db8::1");
        assert_eq!(client(&["::ffff:5.5.5.5"], 1), "5.5.5.5");
        assert_eq!(ClientIp::of(&HeaderMap::new(), None, 0), None);
    }

    #[test]
    fn all_addresses_of_an_ipv6_network_are_one_client() {
        let network = |text: &str| ClientIp(text.parse().unwrap()).network().to_string();
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(network("192.0.2.7"), "192.0.2.7");
    }
}
