//! Who a request comes from, as far as it can be known.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::HeaderMap;

/// The header to which each proxy appends the address that it was called from.
const FORWARDED: &str = "x-forwarded-for";

/// The address of whoever sent a request. A front sets it as an extension of its request, where it knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client(pub IpAddr);

impl Client {
    /// Whoever called the first of the `proxies` before us, each of which has appended to `X-Forwarded-For`; without any,
    /// or where they have not, the `peer`. What stands further ahead in the header, a client could have written itself.
    pub fn of(headers: &HeaderMap, peer: Option<IpAddr>, proxies: usize) -> Option<Client> {
        let forwarded = || {
            // As bytes: what a client wrote ahead need not be text.
            let values = headers.get_all(FORWARDED).iter().rev();
            let mut hops = values.flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','));
            address(hops.nth(proxies.checked_sub(1)?)?)
        };
        forwarded().or(peer).map(|address: IpAddr| Client(address.to_canonical()))
    }

    /// What one client has for itself: an address, or with IPv6 the network of 64 bits that it chooses addresses from.
    pub fn network(self) -> IpAddr {
        match self.0 {
            IpAddr::V6(address) => {
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
            }
            address => address,
        }
    }
}

/// An address as a proxy writes it, with a port or without.
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
        Client::of(&headers, Some([10, 0, 0, 1].into()), proxies).unwrap().0.to_string()
    }

    #[test]
    fn only_what_proxies_of_ours_have_appended_is_believed() {
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
        assert_eq!(Client::of(&HeaderMap::new(), None, 0), None);
    }

    #[test]
    fn addresses_of_one_network_are_one_client() {
        let network = |text: &str| Client(text.parse().unwrap()).network().to_string();
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(network("192.0.2.7"), "192.0.2.7");
    }
}
